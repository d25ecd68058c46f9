"""Temporal behind TLS: authorities, certificates of clients, API keys."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from calling import running_api
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from payloops.daemons.temporal_client import connect_unless_stopped
from payloops.embedded import EmbeddedServers
from payloops.settings import Settings


class Authority:
    """Signs certificates, for an hour. All files are in one directory: `authority.pem`, `NAME.pem`, `NAME.key`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("authority")
        certificate = self._builder("authority", self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = self._written("authority.pem", certificate)

    def sign(self, name: str, *alternatives: x509.GeneralName) -> tuple[Path, Path]:
        """A certificate of this name, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name), *alternatives])
        certificate = self._builder(name, key).add_extension(names, critical=False)
        path = self._directory / f"{name}.key"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return self._written(f"{name}.pem", certificate), path

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=_named(name),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(minutes=5),
            not_valid_after=now + timedelta(hours=1),
        )

    def _written(self, file: str, certificate: x509.CertificateBuilder) -> Path:
        path = self._directory / file
        signed = certificate.sign(self._key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


class Half(asyncio.Protocol):
    """One direction of a tunnel: what arrives here is sent there."""

    there: asyncio.WriteTransport

    def data_received(self, data: bytes) -> None:
        self.there.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.there.close()


class Tunnel(Half):
    """What a client's connection becomes. `opened`: where its transport is noted."""

    def __init__(self, address: str, opened: list[asyncio.Transport]) -> None:
        self._host, _, self._port = address.partition(":")
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._opened.append(transport)
        transport.pause_reading()
        self._connecting = asyncio.ensure_future(self._connect(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._connecting.cancel():
            super().connection_lost(exc)

    async def _connect(self, here: asyncio.Transport) -> None:
        back = Half()
        back.there = here
        self.there, _ = await asyncio.get_running_loop().create_connection(
            lambda: back, self._host, int(self._port)
        )
        here.resume_reading()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def behind_tls(
    settings: Settings, servers: EmbeddedServers, authority: Authority
) -> AsyncIterator[Settings]:
    """For a Temporal that is spoken to over TLS, by clients with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    context.load_cert_chain(*authority.sign("temporal.internal", x509.IPAddress(ip_address("127.0.0.1"))))
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    opened: list[asyncio.Transport] = []
    tunnel = await asyncio.get_running_loop().create_server(
        lambda: Tunnel(servers.temporal_address, opened), "127.0.0.1", 0, ssl=context
    )
    certificate, key = authority.sign("payloops")
    async with tunnel:
        yield settings.model_copy(
            update={
                "temporal_address": f"127.0.0.1:{tunnel.sockets[0].getsockname()[1]}",
                "temporal_tls_server_ca_cert_path": authority.certificate,
                "temporal_tls_client_cert_path": certificate,
                "temporal_tls_client_key_path": key,
            }
        )
        for transport in opened:
            transport.abort()


async def test_processes_and_the_api_speak_to_it(behind_tls: Settings) -> None:
    async with asyncio.timeout(30):
        client = await connect_unless_stopped(behind_tls, stop=asyncio.Event())
    assert client is not None
    async with running_api(behind_tls) as api:
        assert (await api.anyone.get("/ready")).json["dependencies"]["temporal"] == "up"


async def test_the_name_in_its_certificate_may_be_another_than_the_hosts(behind_tls: Settings) -> None:
    for name, up in (("temporal.internal", "up"), ("elsewhere.internal", "down")):
        async with running_api(behind_tls.model_copy(update={"temporal_tls_server_name": name})) as api:
            assert (await api.anyone.get("/ready")).json["dependencies"]["temporal"] == up


@pytest.mark.parametrize(
    "left_out",
    [
        {"temporal_tls_server_ca_cert_path": None},
        {"temporal_tls_client_cert_path": None, "temporal_tls_client_key_path": None},
        {"temporal_tls": False},
    ],
)
async def test_without_what_it_asks_for_it_is_down(behind_tls: Settings, left_out: dict[str, Any]) -> None:
    async with running_api(behind_tls.model_copy(update=left_out)) as api:
        assert (await api.anyone.get("/ready")).json["dependencies"]["temporal"] == "down"
