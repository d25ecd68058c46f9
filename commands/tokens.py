"""Dashboard tokens: JWT, HS256 and nothing else, every claim required (RFC 7519, RFC 8725)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt

from payloops.commands.merchants import MerchantRow

ALGORITHM = "HS256"
ISSUER = "payloops"
AUDIENCE = "payloops-dashboard"
CLAIMS = ("iss", "aud", "sub", "email", "iat", "exp", "jti", "ver")
MAX_TOKEN_LENGTH = 2_048


class InvalidToken(Exception):
    """The token is forged, malformed, expired or no longer counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    merchant_id: UUID
    token_version: int


class Tokens:
    """Issues and reads tokens."""

    def __init__(self, *, secret: str, expires_in: int) -> None:
        """
        Args:
            secret: JWT_SECRET, at least 32 characters.
            expires_in: a token's life, seconds.
        """
        self._secret = secret
        self._life = timedelta(seconds=expires_in)

    def issue(self, merchant: MerchantRow, *, now: datetime) -> str:
        """A token that stands for the merchant until it expires or the merchant's token version moves on."""
        return jwt.encode(
            {
                "iss": ISSUER,
                "aud": AUDIENCE,
                "sub": str(merchant.id),
                "email": merchant.email,
                "iat": now,
                "exp": now + self._life,
                "jti": str(uuid4()),
                "ver": merchant.token_version,
            },
            self._secret,
            algorithm=ALGORITHM,
        )

    def read(self, token: str) -> TokenClaims:
        """
        Raises:
            InvalidToken: not one of ours, or expired.
        """
        if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            raise InvalidToken("The token is malformed")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": list(CLAIMS), "strict_aud": True},
            )
            version = claims["ver"]
            if type(version) is not int or not isinstance(claims["email"], str):
                raise InvalidToken("The token is malformed")
            return TokenClaims(merchant_id=UUID(claims["sub"]), token_version=version)
        except jwt.ExpiredSignatureError:
            raise InvalidToken("The token has expired") from None
        except (jwt.PyJWTError, ValueError):
            raise InvalidToken("The token is not valid") from None
