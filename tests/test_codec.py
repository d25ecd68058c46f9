"""The payload codec: what crosses Temporal is unreadable without the key."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter

from payloops.daemons.temporal_client import connect_unless_stopped
from payloops.settings import Settings
from payloops.workflows_client.codec import EncryptionCodec, UndecryptablePayload
from payloops.workflows_client.connection import data_converter

KEY = "a codec key of more than thirty-two characters"
OTHER_KEY = "another codec key, as long as the first one is"
SECRET = "sk_test_very_secret"
KEY_ID = "5d38ccef2c49a8f1"
STORED = (
    "db6ce6b6edf40ff8790f2d44689e2d92004b4ff4d301c292db15a4060753d5d7ec"
    "b35e86ed99ec60559ea5f97fc17db1c0eecd941d9e5aa9436b614585060e61cb7d"
)
"""`{"amount":1}`, encrypted under KEY by the first version."""


async def test_what_is_encoded_comes_back_and_shows_nothing() -> None:
    converter = data_converter(codec_key=KEY)
    payloads = await converter.encode([{"credentials": {"secretKey": SECRET}}])
    assert payloads[0].metadata["encoding"] == b"binary/encrypted"
    assert SECRET.encode() not in payloads[0].SerializeToString()
    assert await converter.decode(payloads) == [{"credentials": {"secretKey": SECRET}}]


async def test_the_same_payload_is_never_encrypted_the_same() -> None:
    codec = EncryptionCodec(secret=KEY)
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b"1")
    assert (await codec.encode([plain]))[0].data != (await codec.encode([plain]))[0].data


async def test_unencrypted_payloads_are_read_as_they_are() -> None:
    plain = await DataConverter.default.encode([{"amount": 1}])
    assert await data_converter(codec_key=KEY).decode(plain) == [{"amount": 1}]


async def test_payloads_of_another_key_are_refused_with_both_key_ids() -> None:
    payloads = await EncryptionCodec(secret=OTHER_KEY).encode([Payload(data=b"1")])
    with pytest.raises(UndecryptablePayload) as refused:
        await EncryptionCodec(secret=KEY).decode(payloads)
    assert refused.value.key_id == EncryptionCodec(secret=OTHER_KEY).key_id
    assert refused.value.own_key_id == EncryptionCodec(secret=KEY).key_id


async def test_a_payload_of_a_key_that_has_no_readable_id_is_refused_as_one_of_another_key() -> None:
    codec = EncryptionCodec(secret=KEY)
    payloads = await codec.encode([Payload(data=b"1")])
    payloads[0].metadata["encryption-key-id"] = b"\xff"
    with pytest.raises(UndecryptablePayload):
        await codec.decode(payloads)


async def test_what_was_encrypted_once_is_read_for_ever_and_its_keys_id_gives_nothing_of_it_away() -> None:
    """The id stands in every history in the clear: it is derived beside the key, and is no part of it."""
    codec = EncryptionCodec(secret=KEY)
    assert codec.key_id == KEY_ID
    metadata = {"encoding": b"binary/encrypted", "encryption-key-id": KEY_ID.encode()}
    stored = Payload(metadata=metadata, data=bytes.fromhex(STORED))
    assert await codec.decode([stored]) == [
        Payload(metadata={"encoding": b"json/plain"}, data=b'{"amount":1}')
    ]


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, 11), slice(0, -1), slice(1, None)])
async def test_a_changed_payload_is_refused(cut: slice) -> None:
    codec = EncryptionCodec(secret=KEY)
    payloads = await codec.encode([Payload(metadata={"encoding": b"json/plain"}, data=b'{"amount": 1}')])
    payloads[0].data = payloads[0].data[cut]
    with pytest.raises(UndecryptablePayload):
        await codec.decode(payloads)


async def test_without_a_key_payloads_are_plain_json() -> None:
    payloads = await data_converter(codec_key=None).encode([{"amount": 1}])
    assert payloads[0].metadata["encoding"] == b"json/plain"
    assert payloads[0].data == b'{"amount":1}'


@pytest.mark.parametrize("key", [None, KEY])
async def test_null_is_json_too(key: str | None) -> None:
    """A worker in TypeScript reads the SDK's own form of None as `undefined`."""
    converter = data_converter(codec_key=key)
    written = await converter.encode([None, {"a": None}])
    codec = EncryptionCodec(secret=KEY)
    assert [(each.metadata["encoding"], each.data) for each in await codec.decode(written)] == [
        (b"json/plain", b"null"),
        (b"json/plain", b'{"a":null}'),
    ]
    assert await converter.decode(written) == [None, {"a": None}]
    assert await converter.decode(await DataConverter.default.encode([None])) == [None]


@pytest.mark.parametrize(("key", "warned"), [(None, True), (SecretStr(KEY), False)])
async def test_a_process_without_the_key_says_what_stands_in_histories(
    settings: Settings, *, key: SecretStr | None, warned: bool
) -> None:
    stop = asyncio.Event()
    stop.set()
    with capture_logs() as lines:
        await connect_unless_stopped(settings.model_copy(update={"temporal_codec_key": key}), stop=stop)
    assert [line["event"] for line in lines] == ["temporal.histories_readable"] * warned


NODE = shutil.which("node")
NO_MESSAGES = """
const Payload = { encode: (bytes) => ({ finish: () => bytes }), decode: (bytes) => bytes };
module.exports = Object.assign({}, { temporal: { api: { common: { v1: { Payload } } } } });
"""
"""Has no names to import for Node.js, like the library."""


@pytest.mark.skipif(NODE is None, reason="there is no Node.js here")
async def test_the_codec_that_the_docs_give_to_workers_reads_what_this_one_writes_and_is_read(
    tmp_path: Path,
) -> None:
    """With the bytes of messages in place of messages, as the library that has these is not here."""
    docs = (Path(__file__).resolve().parent.parent / "docs/workers.md").read_text()
    [code] = re.findall(r"```js\n(.*?)```", docs, re.DOTALL)
    program = tmp_path / "codec.mjs"
    library = tmp_path / "node_modules" / "@temporalio" / "proto"
    library.mkdir(parents=True)
    (library / "index.js").write_text(NO_MESSAGES)
    program.write_text(
        code
        + f"""
const codec = new EncryptionCodec({json.dumps(KEY)});
const metadata = {{ encoding: Buffer.from('binary/encrypted'), 'encryption-key-id': Buffer.from('{KEY_ID}') }};
const [read] = await codec.decode([{{ metadata, data: Buffer.from('{STORED}', 'hex') }}]);
const [written] = await codec.encode([read]);
const [plain] = await codec.decode([{{ metadata: {{ encoding: Buffer.from('json/plain') }}, data: 'as it is' }}]);
console.log(JSON.stringify([
  read.toString('hex'), written.data.toString('hex'), String(written.metadata['encryption-key-id']), plain.data,
]));
"""
    )
    assert NODE is not None
    ran = await asyncio.create_subprocess_exec(NODE, program, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(ran.communicate(), 60)
    read, written, key_id, plain = json.loads(output)
    expected = Payload(metadata={"encoding": b"json/plain"}, data=b'{"amount":1}')
    assert Payload.FromString(bytes.fromhex(read)) == expected
    sent = Payload(
        metadata={"encoding": b"binary/encrypted", "encryption-key-id": key_id.encode()},
        data=bytes.fromhex(written),
    )
    assert await EncryptionCodec(secret=KEY).decode([sent]) == [expected]
    assert plain == "as it is"
