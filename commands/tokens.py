"""Tokens of merchants, of staff and of their sessions: JWT, HS256 and nothing else, every claim required.

RFC 7519, RFC 8725.
"""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

import jwt

from payloops.commands.verified_secrets import SecretDigest, remember

ALGORITHM = "HS256"
ISSUER = "payloops"
AUDIENCE = "payloops-dashboard"
STAFF_AUDIENCE = "payloops-staff"
SESSION_AUDIENCE = "payloops-support"
"""For staff in a browser: the token in the cookie is not accepted by the API, nor an API token by pages."""
CLAIMS = ("iss", "aud", "sub", "email", "iat", "exp", "jti", "ver")
MAX_TOKEN_LENGTH = 2_048


class InvalidToken(Exception):
    """The token is forged, malformed, expired or revoked."""


class TokenHolder(Protocol):
    """The holder of a token: a merchant, or a member of the staff."""

    @property
    def id(self) -> UUID: ...

    @property
    def email(self) -> str: ...

    @property
    def token_version(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """What a token says. `id`: of the token itself."""

    id: UUID
    subject: UUID
    token_version: int
    expires_at: datetime


class Tokens:
    """Issues and reads the tokens of one audience; those of another are refused."""

    def __init__(self, *, secret: str, expires_in: int, audience: str = AUDIENCE) -> None:
        """
        Args:
            secret: JWT_SECRET, at least 32 characters.
            expires_in: a token's life, seconds.
        """
        self._secret = secret
        self._life = timedelta(seconds=expires_in)
        self._audience = audience
        self._digest_of = SecretDigest()
        self._read: dict[bytes, TokenClaims] = {}

    def issue(self, holder: TokenHolder, *, now: datetime) -> str:
        """A token that stands for its holder until it expires or the holder's token version moves on."""
        return jwt.encode(
            {
                "iss": ISSUER,
                "aud": self._audience,
                "sub": str(holder.id),
                "email": holder.email,
                "iat": now,
                "exp": now + self._life,
                "jti": str(uuid4()),
                "ver": holder.token_version,
            },
            self._secret,
            algorithm=ALGORITHM,
        )

    def read(self, token: str) -> TokenClaims:
        """What a token says. Its signature is checked once, and the token remembered by a keyed digest.

        Raises:
            InvalidToken: not one of ours, or expired.
        """
        digest = self._digest_of(token)
        claims = self._read.get(digest)
        if claims is None:
            claims = self._checked(token)
            remember(self._read, digest, claims)
        elif claims.expires_at <= datetime.now(UTC):
            raise InvalidToken("The token has expired")
        return claims

    def _checked(self, token: str) -> TokenClaims:
        if len(token) > MAX_TOKEN_LENGTH or "=" in token:  # PyJWT takes padding
            raise InvalidToken("The token is malformed")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=self._audience,
                # A process whose clock is ahead issues tokens of the future: they are as good as any.
                options={"require": list(CLAIMS), "strict_aud": True, "verify_iat": False},
            )
            version, issued_at = claims["ver"], claims["iat"]
            if type(issued_at) is not int or issued_at > claims["exp"]:
                raise InvalidToken("The token is malformed")
            if type(version) is not int or not isinstance(claims["email"], str):
                raise InvalidToken("The token is malformed")
            return TokenClaims(
                id=UUID(claims["jti"]),
                subject=UUID(claims["sub"]),
                token_version=version,
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            )
        except jwt.ExpiredSignatureError:
            raise InvalidToken("The token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise InvalidToken("The token is not valid") from None

    def form_token(self, token_id: UUID) -> str:
        """What the forms of a session's pages hold: only who has seen a page of the session knows it."""
        return hmac.digest(
            self._secret.encode(), f"form:{self._audience}:{token_id}".encode(), "sha256"
        ).hex()
