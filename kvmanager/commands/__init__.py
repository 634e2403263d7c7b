"""The verbs of the command line `kvmanager`, each module imported when one of its verbs is used."""
