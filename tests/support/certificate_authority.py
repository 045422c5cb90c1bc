"""A certificate authority for a test session, and a certificate for this machine."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class CertificateAuthority:
    """Signs one certificate, for localhost, 127.0.0.1 and *hosts*, valid for a day.

    Attributes:
        file: PEM of the authority, for clients to trust.
        chain: PEM of the key and the certificate, for servers.
    """

    def __init__(self, directory: Path, *hosts: str) -> None:
        """Write authority, certificate and key into *directory*, which must exist."""
        self._hosts = ("localhost", *hosts)
        self._now = datetime.datetime.now(datetime.UTC)
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = self._certificate("keyrot tests", root_key.public_key(), "keyrot tests", root_key)
        mine = self._certificate("localhost", key.public_key(), "keyrot tests", root_key)
        self.file = directory / "authority.pem"
        self.file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        self.chain = directory / "localhost.pem"
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        self.chain.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, form, plain)
            + mine.public_bytes(serialization.Encoding.PEM)
        )

    def _certificate(
        self,
        subject: str,
        public: ec.EllipticCurvePublicKey,
        issuer: str,
        signer: ec.EllipticCurvePrivateKey,
    ) -> x509.Certificate:
        is_root = subject == issuer
        names = [
            *(x509.DNSName(host) for host in self._hosts),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        signs = x509.KeyUsage(not is_root, *[False] * 4, is_root, *[False] * 3)
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(issuer))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(hours=1))
            .not_valid_after(self._now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(signs, critical=True)  # Python 3.13 asks an authority for it
            .add_extension(identifier, critical=False)
            .add_extension(above, critical=False)
            .sign(signer, hashes.SHA256())
        )

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain)
        return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
