"""A certificate of this machine for a test session, which is its own authority."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class CertificateAuthority:
    """Signs one certificate, for localhost, 127.0.0.1 and *hosts*, valid for a day.

    Attributes:
        file: PEM of the authority, for clients to trust.
        chain: PEM of the key and the certificate, for servers.
    """

    def __init__(self, directory: Path, *hosts: str) -> None:
        """Write authority, certificate and key into *directory*, which must exist."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        names = [x509.DNSName(host) for host in ("localhost", *hosts)]
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        usage = x509.KeyUsage(True, *[False] * 4, True, *[False] * 3)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([*names, address]), critical=False)
            .add_extension(usage, critical=True)  # Python 3.13 asks an authority for it
            .add_extension(identifier, critical=False)
            .add_extension(issuer, critical=False)
            .sign(key, hashes.SHA256())
        ).public_bytes(serialization.Encoding.PEM)
        self.file, self.chain = directory / "authority.pem", directory / "localhost.pem"
        self.file.write_bytes(made)
        plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
        self.chain.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain) + made)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain)
        return context
