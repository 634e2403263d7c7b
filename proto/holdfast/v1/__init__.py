"""Generated code of the contract, version 1. See the .proto files beside this one."""
