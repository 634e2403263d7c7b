"""A real gateway on a free port, with scripted peers on real sockets, and a tiny tokenizer made on the spot."""

import asyncio
import json
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq.asyncio
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).parent))
import peers

from gateway.client import Client
from gateway.config import GatewaySettings
from gateway.server import Gateway
from holdfast.rundir import RunDir

SENTENCES = [
    "Once upon a time there was a small fox who lived by the sea.",
    "The quick brown fox jumps over the lazy dog, and then over the wall.",
    "日本語のテキストと、中文的句子。",
    "Zażółć gęślą jaźń 🙂🙃🦊 naïve café",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / peers.MODEL
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run_dir():
    path = Path(tempfile.mkdtemp(prefix="hf"))
    yield RunDir(path)
    shutil.rmtree(path, ignore_errors=True)


class Service:
    """A gateway with its scripted daemon and workers."""

    def __init__(self, context, sockets, daemon, gateway):
        self.context, self.sockets, self.daemon, self.gateway = context, sockets, daemon, gateway
        self.workers = []

    @property
    def target(self):
        return f"127.0.0.1:{self.gateway.port}"

    def worker(self, script=None, name="w1"):
        worker = peers.ScriptedWorker(self.context, self.sockets, self.daemon, name, script)
        self.workers.append(worker)
        return worker

    async def ready(self):
        """Until the gateway serves."""
        async with asyncio.timeout(20):
            while not self.gateway.fleet.serving:
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def client(self, script=None, **options):
        """A client, once a worker with `script` is ready."""
        if script is not None:
            self.worker(script)
            await self.ready()
        async with Client(self.target, **options) as client:
            yield client


@asynccontextmanager
async def serving(model_folder, sockets, peers_of=None, **settings):
    """With `peers_of`: another gateway of that service."""
    context = peers_of.context if peers_of else zmq.asyncio.Context()
    daemon = peers_of.daemon if peers_of else peers.ScriptedDaemon(context, sockets)
    given = {"host": "127.0.0.1", "port": 0, "worker_wait": 5.0, "shutdown_grace": 0.5} | settings
    gateway = Gateway(GatewaySettings(model=model_folder, run_dir=sockets.path, **given))
    await gateway.start()
    found = Service(context, sockets, daemon, gateway)
    try:
        yield found
    finally:
        await gateway.stop()
        if not peers_of:
            for peer in (daemon, *found.workers):
                await peer.close()
            context.term()


@pytest.fixture
async def service(model_folder, run_dir):
    async with serving(model_folder, run_dir) as found:
        yield found


@pytest.fixture
def serve(model_folder, run_dir):
    """`async with serve(setting=…) as service`."""

    def start(folder=None, **settings):
        return serving(folder or model_folder, run_dir, **settings)

    return start
