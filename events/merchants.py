"""A merchant's account: registered and changed, API keys issued and revoked, processors configured and removed.

The secrets themselves (password and key hashes, processor credentials) stand in tables, because secrets must
be replaceable. What happened to them stands here, without the secret, appended in the same transaction.
"""

from dataclasses import dataclass

from payloops.events.stream import Stream, StreamCreated, StreamEvent, stream_topic


class MerchantRegistered(StreamCreated):
    TOPIC = "merchant.registered"
    name: str
    email: str


class ProfileChanged(StreamEvent):
    """What the profile is from here on, whichever part of it changed."""

    TOPIC = "merchant.profile_changed"
    name: str
    webhook_url: str | None

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.name = self.name
        aggregate.webhook_url = self.webhook_url


class PasswordChanged(StreamEvent):
    """Attributes: `token_version`: dashboard tokens of older versions no longer count."""

    TOPIC = "merchant.password_changed"
    token_version: int


class WebhookSecretRotated(StreamEvent):
    """Webhooks are signed with a new secret, and until `previous_expires_at` with the former one, too.

    Attributes:
        previous_expires_at: ISO 8601 in UTC.
    """

    TOPIC = "webhook_secret.rotated"
    previous_expires_at: str


class WebhooksSwitchedOff(StreamEvent):
    """The endpoint does not want webhooks or has failed for days: nothing is sent until the URL is set again.

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
    """The merchant wants a webhook delivered, on a schedule that begins anew.

    Attributes:
        number: 1 for the webhook's first such request, one more for each after it.
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


class ProcessorConfigured(StreamEvent):
    """Created or replaced: the credentials are new, too."""

    TOPIC = "processor.configured"
    processor: str
    enabled: bool
    priority: int
    test_mode: bool

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.processors[self.processor] = ProcessorChoice(self.enabled, self.priority, self.test_mode)


class ProcessorAdjusted(StreamEvent):
    """Enabled, disabled, or ranked anew, with the credentials it had."""

    TOPIC = "processor.adjusted"
    processor: str
    enabled: bool
    priority: int
    test_mode: bool

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.processors[self.processor] = ProcessorChoice(self.enabled, self.priority, self.test_mode)


class ProcessorRemoved(StreamEvent):
    TOPIC = "processor.removed"
    processor: str

    def apply(self, aggregate: "Merchant") -> None:
        aggregate.processors.pop(self.processor, None)


@dataclass(frozen=True, slots=True)
class ProcessorChoice:
    """How a processor stands among the merchant's; a lower priority number is tried first."""

    enabled: bool
    priority: int
    test_mode: bool


@stream_topic("merchant")
class Merchant(Stream):
    """The fold of an account. The stream's id is the merchant's id.

    Attributes:
        api_keys: ids of the keys that are not revoked.
        processors: those that are configured, enabled or not, by name.
        webhooks_off: whether the endpoint was switched off; nothing is sent to it.
    """

    def __init__(self, *, merchant_id: str, name: str, email: str) -> None:
        self.merchant_id = merchant_id
        self.name = name
        self.email = email
        self.webhook_url: str | None = None
        self.webhooks_off = False
        self.api_keys: set[str] = set()
        self.processors: dict[str, ProcessorChoice] = {}
