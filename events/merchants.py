"""The stream of a merchant's account: registration, profile, API keys, processors, webhooks.

The secrets themselves (password and key hashes, processor credentials) are in tables, because secrets must be
replaceable. What happened to them is recorded here without the secret, in the same transaction.
"""

from dataclasses import dataclass

from payloops.events.stream import Stream, StreamCreated, StreamEvent, stream_topic


class MerchantRegistered(StreamCreated):
    TOPIC = "merchant.registered"
    name: str
    email: str


class ProfileChanged(StreamEvent):
    """The whole new profile, whichever part of it changed."""

    TOPIC = "merchant.profile_changed"
    name: str
    webhook_url: str | None

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.name = self.name
        aggregate.webhook_url = self.webhook_url


class PasswordChanged(StreamEvent):
    """
    Attributes:
        token_version: dashboard tokens with a lower version are no longer valid.
    """

    TOPIC = "merchant.password_changed"
    token_version: int


class WebhookSecretRotated(StreamEvent):
    """Webhooks are signed with a new secret, and until `previous_expires_at` also with the previous one.

    Attributes:
        previous_expires_at: ISO 8601 in UTC.
    """

    TOPIC = "webhook_secret.rotated"
    previous_expires_at: str


class WebhooksSwitchedOff(StreamEvent):
    """The endpoint answered 410, or has failed for days: nothing is sent until the URL is set again.

    Attributes:
        reason: for the merchant to read.
    """

    TOPIC = "webhooks.switched_off"
    url: str
    reason: str

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.webhooks_off = True


class WebhooksSwitchedOn(StreamEvent):
    """The URL was set again, to the same or another one, or was removed."""

    TOPIC = "webhooks.switched_on"
    url: str | None

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.webhooks_off = False


class WebhookRetryRequested(StreamEvent):
    """The merchant asked to deliver a webhook again, with a new retry schedule.

    Attributes:
        number: counts the requests for this webhook, from 1.
    """

    TOPIC = "webhook.retry_requested"
    webhook_event_id: str
    number: int


class ApiKeyIssued(StreamEvent):
    TOPIC = "api_key.issued"
    api_key_id: str
    name: str
    prefix: str
    expires_at: str | None

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.api_keys.add(self.api_key_id)


class ApiKeyRevoked(StreamEvent):
    TOPIC = "api_key.revoked"
    api_key_id: str

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.api_keys.discard(self.api_key_id)


class ProcessorSet(StreamEvent):
    """How a processor is used from here on."""

    processor: str
    enabled: bool
    priority: int
    test_mode: bool

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.processors[self.processor] = ProcessorChoice(self.enabled, self.priority, self.test_mode)


class ProcessorConfigured(ProcessorSet):
    """Created or replaced, with new credentials."""

    TOPIC = "processor.configured"


class ProcessorAdjusted(ProcessorSet):
    """Settings changed, with the same credentials."""

    TOPIC = "processor.adjusted"


class ProcessorRemoved(StreamEvent):
    TOPIC = "processor.removed"
    processor: str

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.processors.pop(self.processor, None)


@dataclass(frozen=True, slots=True)
class ProcessorChoice:
    """A merchant's settings for a processor. A lower priority number is tried first."""

    enabled: bool
    priority: int
    test_mode: bool


@stream_topic("merchant")
class Merchant(Stream):
    """A merchant's account. The stream's id is the merchant's id.

    Attributes:
        api_keys: ids of the keys that are not revoked.
        processors: all that are configured, enabled or not, by name.
        webhooks_off: whether the endpoint is switched off, so that nothing is sent.
    """

    def __init__(self, *, merchant_id: str, name: str, email: str) -> None:
        self.merchant_id = merchant_id
        self.name = name
        self.email = email
        self.webhook_url: str | None = None
        self.webhooks_off = False
        self.api_keys: set[str] = set()
        self.processors: dict[str, ProcessorChoice] = {}
