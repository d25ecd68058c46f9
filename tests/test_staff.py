"""Support staff: added by the operator, see every merchant's orders, change nothing, and are seen looking."""

import asyncio
import json
import os
import pty
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import jwt
import psycopg
import pytest
from calling import PASSWORD, Api, Caller, Merchant
from processes import environment_of, run_command
from projecting import project_orders
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.add_staff import StaffEmailTaken, add_staff
from payloops.commands.hashing import Hasher
from payloops.commands.remove_staff import remove_staff
from payloops.commands.staff import StaffNotFound, StaffRow, list_staff
from payloops.commands.staff_views import list_staff_views
from payloops.commands.tokens import AUDIENCE, STAFF_AUDIENCE
from payloops.events.timestamps import utc_now
from payloops.http.app import ROUTES
from payloops.settings import Settings

EMAIL = "grace@payloops.example"


async def hire(pool: AsyncConnectionPool, email: str = EMAIL) -> StaffRow:
    async with Hasher(rounds=4) as passwords:
        return await add_staff(
            pool, name="Grace", email=email, password=PASSWORD, passwords=passwords, at=utc_now()
        )


@dataclass(frozen=True)
class Desk:
    """A member of the staff, logged in."""

    member: StaffRow
    token: str
    calls: Caller


@pytest.fixture
async def desk(api: Api, pool: AsyncConnectionPool) -> Desk:
    member = await hire(pool)
    answer = await api.anyone.post("/api/staff/login", {"email": EMAIL.upper(), "password": PASSWORD})
    assert answer.status == 200, answer.raw
    assert answer.json["staff"] == {"id": str(member.id), "name": "Grace", "email": EMAIL}
    token = answer.json["token"]
    return Desk(member, token, Caller(api.anyone.session, {"Authorization": f"Bearer {token}"}))


async def test_staff_log_in_with_their_email_as_typed(api: Api, pool: AsyncConnectionPool) -> None:
    await hire(pool, "grace@b\u00fccher.example")
    for email in ("grace@b\u00fccher.example", "grace@xn--bcher-kva.example"):
        answer = await api.anyone.post("/api/staff/login", {"email": email, "password": PASSWORD})
        assert answer.status == 200, email


PATHS = ("", "/transactions", "/events", "/why")


async def test_staff_see_what_each_merchant_sees(api: Api, desk: Desk) -> None:
    for merchant in (await api.merchant(), await api.merchant()):
        order = await merchant.order(customerEmail="ada@example.com")
        assert (await merchant.shop.post(f"/v1/orders/{order}/pay")).status == 200
        for path in ("", "/transactions", "/events"):
            shown = await desk.calls.get(f"/api/staff/orders/{order}{path}")
            own = await merchant.shop.get(f"/v1/orders/{order}{path}")
            assert shown.status == 200
            if path == "":
                assert shown.json == {**own.json, "merchantId": str(merchant.id)}
            else:
                assert shown.json == own.json
                assert shown.json


async def test_staff_see_an_order_as_it_was_and_why_it_is_as_it_is(api: Api, desk: Desk) -> None:
    merchant = await api.merchant()
    order = await merchant.order(amount=4_999)
    assert (await merchant.shop.post(f"/v1/orders/{order}/pay")).status == 200
    path = f"/api/staff/orders/{order}"
    for as_of in ("1", "2", "2999-01-01T00:00:00Z"):
        own = await merchant.dashboard.get(f"/api/orders/{order}/events?asOf={as_of}")
        assert (await desk.calls.get(f"{path}/events?asOf={as_of}")).json == own.json
    assert (await desk.calls.get(f"{path}/events?asOf=3")).fields == {"asOf"}
    why = (await desk.calls.get(f"{path}/why")).json
    assert (why["orderId"], why["version"], why["status"]) == (order, 2, "processing")
    assert why["state"] == "Attempt 1 at Stripe is under way: how it ends is not known yet."
    assert "went to Stripe, because it is preferred for USD." in why["history"][1]
    assert why["pending"][0].startswith("Attempt 1: Stripe's answer has been awaited since ")
    assert why["next"] == [
        "It cannot be paid again before this attempt has ended; the merchant can cancel it."
    ]


async def test_what_is_not_there_is_not_found_and_on_record(
    api: Api, desk: Desk, pool: AsyncConnectionPool
) -> None:
    merchant = await api.merchant()
    unknown = str(uuid7())
    for path in PATHS:
        for id in (unknown, str(merchant.id), "x"):
            answer = await desk.calls.get(f"/api/staff/orders/{id}{path}")
            assert (answer.status, answer.code) == (404, "not_found")
    views = await list_staff_views(pool, limit=100)
    assert len(views) == 12
    assert {str(view.order_id) for view in views} == {unknown, str(merchant.id), "None"}
    assert {view.merchant_id for view in views} == {None}


async def test_each_look_is_on_record_before_it_is_answered(
    api: Api, desk: Desk, pool: AsyncConnectionPool
) -> None:
    merchant = await api.merchant()
    order = await merchant.order()
    since = utc_now() - timedelta(seconds=5)
    for path in PATHS:
        await desk.calls.get(f"/api/staff/orders/{order}{path}", **{"X-Correlation-ID": f"look{len(path)}"})
    await desk.calls.get(f"/api/staff/orders?q=ada%40example.com&merchantId={merchant.id}")
    views = await list_staff_views(pool, limit=100)
    assert [(view.route, str(view.order_id), view.merchant_id) for view in reversed(views)] == [
        ("GET /api/staff/orders/{id}", order, merchant.id),
        ("GET /api/staff/orders/{id}/transactions", order, merchant.id),
        ("GET /api/staff/orders/{id}/events", order, merchant.id),
        ("GET /api/staff/orders/{id}/why", order, merchant.id),
        ("GET /api/staff/orders", "None", merchant.id),
    ]
    assert {(view.staff_id, view.staff_email) for view in views} == {(desk.member.id, EMAIL)}
    assert views[-1].correlation_id == "look0"
    assert views[0].query == {"q": "ada@example.com", "merchantId": str(merchant.id), "page": 1, "limit": 20}
    assert {view.query for view in views[1:]} == {None}
    assert all(since < view.viewed_at <= utc_now() for view in views)
    assert [view.route for view in await list_staff_views(pool, limit=1)] == ["GET /api/staff/orders"]
    assert await list_staff_views(pool, limit=9, email="nobody@example.com") == []
    assert len(await list_staff_views(pool, limit=9, order_id=views[1].order_id)) == 4
    assert await list_staff_views(pool, limit=9, merchant_id=uuid4()) == []
    assert len(await list_staff_views(pool, limit=9, merchant_id=merchant.id, email=EMAIL.upper())) == 5


async def test_what_cannot_be_recorded_is_not_shown(api: Api, desk: Desk, pool: AsyncConnectionPool) -> None:
    order = await (await api.merchant()).order()
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE staff_views RENAME TO elsewhere")
    for path in PATHS:
        answer = await desk.calls.get(f"/api/staff/orders/{order}{path}")
        assert answer.status >= 500
        assert order.encode() not in answer.raw


async def test_the_record_cannot_be_changed(api: Api, desk: Desk, pool: AsyncConnectionPool) -> None:
    await desk.calls.get("/api/staff/orders")
    for statement in (
        "UPDATE staff_views SET route = ''",
        "DELETE FROM staff_views",
        "TRUNCATE staff_views",
    ):
        async with pool.connection() as connection:
            with pytest.raises(psycopg.errors.RaiseException):
                await connection.execute(statement)
    assert len(await list_staff_views(pool, limit=9)) == 1


async def test_looking_appends_no_event(api: Api, desk: Desk, pool: AsyncConnectionPool) -> None:
    order = await (await api.merchant()).order()
    before = await log_length(pool)
    for path in PATHS:
        await desk.calls.get(f"/api/staff/orders/{order}{path}")
    await desk.calls.get("/api/staff/orders")
    assert await log_length(pool) == before


async def log_length(pool: AsyncConnectionPool) -> int:
    async with pool.connection() as connection:
        found = await (await connection.execute("SELECT count(*) FROM stored_events")).fetchone()
    assert found is not None
    return int(found[0])


async def test_orders_of_every_merchant_are_found(api: Api, desk: Desk, settings: Settings) -> None:
    one, two = await api.merchant(), await api.merchant()
    orders = {
        name: await merchant.order(externalId=external_id, customerEmail=email)
        for name, merchant, external_id, email in (
            ("a", one, "shared", "Ada@example.com"),
            ("b", two, "shared", "bob@example.com"),
            ("c", two, "other", "ada@EXAMPLE.com"),
        )
    }
    await project_orders(settings.database_url.get_secret_value())

    async def found(query: str) -> str:
        answer = await desk.calls.get(f"/api/staff/orders?{query}")
        assert answer.status == 200, answer.raw
        assert set(answer.json) == {"data", "page", "limit", "hasMore"}
        names = {id: name for name, id in orders.items()}
        return "".join(names[order["id"]] for order in answer.json["data"])

    assert await found("") == "cba"
    assert await found("q=shared") == "ba"
    assert await found("q=ada%40example.com") == "ca"
    assert await found("q=" + orders["b"]) == "b"
    assert await found(f"q=shared&merchantId={one.id}") == "a"
    assert await found(f"merchantId={two.id}") == "cb"
    assert await found("q=share") == ""
    assert await found("q=%25") == ""
    assert await found(f"merchantId={uuid4()}") == ""
    assert await found("limit=2") == "cb"
    assert await found("limit=2&page=2") == "a"
    assert await found("limit=2&page=3") == ""
    pages = [(await desk.calls.get(f"/api/staff/orders?limit=2&page={n}")).json for n in (1, 2)]
    assert [page["hasMore"] for page in pages] == [True, False]
    [shown] = (await desk.calls.get(f"/api/staff/orders?q={orders['a']}")).json["data"]
    own = (await one.shop.get(f"/v1/orders/{orders['a']}")).json
    assert shown == {**own, "merchantId": str(one.id)}


async def test_a_search_that_does_not_fit_is_refused(subtests: pytest.Subtests, desk: Desk) -> None:
    for query, field in [
        ("q=", "q"),
        ("q=" + "x" * 256, "q"),
        ("merchantId=x", "merchantId"),
        ("page=0", "page"),
        ("page=1001", "page"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("staff=1", "staff"),
    ]:
        with subtests.test(query=query):
            assert (await desk.calls.get(f"/api/staff/orders?{query}")).fields == {field}


async def test_a_staff_token_opens_staff_routes_only_and_no_other_token_does(
    subtests: pytest.Subtests, api: Api, desk: Desk
) -> None:
    """Generated from the routes: each kind of token is tried on every route of another kind."""
    merchant = await api.merchant()
    order = await merchant.order()
    staff, merchants = desk.calls.headers, merchant.dashboard.headers
    tried = 0
    for each in ROUTES:
        path = each.path.replace("{id}", order).replace("{processor}", "stripe")
        for headers in (staff, merchants, merchant.shop.headers):
            fits = {"staff": staff, "bearer": merchants, "api_key": merchant.shop.headers, None: headers}
            if fits.get(each.auth) is headers:
                continue
            with subtests.test(f"{each.method} {each.path}", headers=list(headers)):
                tried += 1
                answer = await api.anyone.call(each.method, path, headers=headers)
                shown = "X-API-Key" in headers or each.auth == "api_key"
                assert answer.status == 401
                assert each.page or answer.code == ("unauthorized" if shown else "invalid_token")
    assert tried == sum({None: 0, "staff_session": 3}.get(each.auth, 2) for each in ROUTES)
    assert (await merchant.dashboard.get("/api/processors")).status == 200


async def test_routes_for_staff_change_nothing(api: Api) -> None:
    staff_routes = [each for each in ROUTES if each.path.startswith("/api/staff/")]
    assert len(staff_routes) == 8
    for each in staff_routes:
        if each.path == "/api/staff/login":
            assert (each.auth, each.limits) == (None, ("staff_login",))
        else:
            assert (each.method, each.auth) == ("GET", "staff")
    assert {each.path for each in ROUTES if each.auth == "staff"} < {each.path for each in staff_routes}


def forged(desk: Desk, settings: Settings, **claims: Any) -> str:
    genuine = jwt.decode(desk.token, options={"verify_signature": False})
    return jwt.encode({**genuine, **claims}, settings.jwt_secret.get_secret_value(), algorithm="HS256")


async def test_a_staff_token_says_who_and_ends(api: Api, desk: Desk, settings: Settings) -> None:
    claims = jwt.decode(desk.token, options={"verify_signature": False})
    assert (claims["aud"], claims["sub"]) == (STAFF_AUDIENCE, str(desk.member.id))
    assert claims["exp"] - claims["iat"] == 8 * 3600
    for changed in (
        {"aud": AUDIENCE},
        {"aud": [STAFF_AUDIENCE, AUDIENCE]},
        {"sub": str(uuid4())},
        {"exp": 1},
        {"ver": 2},
    ):
        token = forged(desk, settings, **changed)
        answer = await api.anyone.get("/api/staff/orders", Authorization=f"Bearer {token}")
        assert (answer.status, answer.code) == (401, "invalid_token")
    token = forged(desk, settings)
    assert (await api.anyone.get("/api/staff/orders", Authorization=f"Bearer {token}")).status == 200


async def test_a_merchants_id_in_a_staff_token_is_nobody(
    api: Api, desk: Desk, settings: Settings, pool: AsyncConnectionPool
) -> None:
    merchant: Merchant = await api.merchant()
    token = forged(desk, settings, sub=str(merchant.id), email=merchant.email)
    answer = await api.anyone.get("/api/staff/orders", Authorization=f"Bearer {token}")
    assert answer.code == "invalid_token"


async def test_who_is_removed_is_out_at_once_and_what_they_saw_stays(
    api: Api, desk: Desk, pool: AsyncConnectionPool
) -> None:
    assert (await desk.calls.get("/api/staff/orders")).status == 200
    other = await hire(pool, "other@example.com")
    await remove_staff(pool, email=EMAIL.upper(), at=utc_now())
    assert [each.id for each in await list_staff(pool) if each.removed_at is None] == [other.id]
    assert (await desk.calls.get("/api/staff/orders")).code == "invalid_token"
    login = {"email": EMAIL, "password": PASSWORD}
    assert (await api.anyone.post("/api/staff/login", login)).code == "invalid_credentials"
    with pytest.raises(StaffNotFound):
        await remove_staff(pool, email=EMAIL, at=utc_now())
    again = await hire(pool)
    assert again.id != desk.member.id
    assert (await desk.calls.get("/api/staff/orders")).code == "invalid_token"
    assert [view.staff_id for view in await list_staff_views(pool, limit=9)] == [desk.member.id]


async def test_an_email_is_on_the_staff_once(pool: AsyncConnectionPool) -> None:
    await hire(pool)
    with pytest.raises(StaffEmailTaken):
        await hire(pool, EMAIL.upper())


async def test_accounts_of_merchants_and_of_staff_are_apart(api: Api, pool: AsyncConnectionPool) -> None:
    merchant = await api.merchant()
    login = {"email": merchant.email, "password": PASSWORD}
    assert (await api.anyone.post("/api/staff/login", login)).code == "invalid_credentials"
    await hire(pool, merchant.email)
    assert (await api.anyone.post("/api/staff/login", login)).status == 200
    unknown = await api.anyone.post("/api/staff/login", {**login, "email": "nobody@example.com"})
    wrong = await api.anyone.post("/api/staff/login", {**login, "password": "wrong password"})
    assert (unknown.status, unknown.lasting) == (401, wrong.lasting)


async def command(settings: Settings, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    return await run_command(settings, "staff", *arguments, stdin=stdin)


async def test_the_operator_adds_lists_and_removes(api: Api, settings: Settings) -> None:
    added = await command(settings, "add", EMAIL, "--name", "Grace", stdin=f"{PASSWORD}\n")
    assert added[0] == 0, added
    assert added[1].startswith(f"added {EMAIL} (")
    assert PASSWORD not in added[1] + added[2]
    login = {"email": EMAIL, "password": PASSWORD}
    token = (await api.anyone.post("/api/staff/login", login)).json["token"]
    await api.anyone.get("/api/staff/orders", Authorization=f"Bearer {token}")
    assert await command(settings, "add", EMAIL, "--name", "Grace", stdin=f"{PASSWORD}\n") == (
        *(1, ""),
        "payloops: somebody on the staff has this email address already\n",
    )
    status, out, _ = await command(settings, "list", "--json")
    [row] = json.loads(out)
    assert (status, row["email"], row["name"], row["removedAt"]) == (0, EMAIL, "Grace", None)
    assert set(row) == {"id", "name", "email", "createdAt", "removedAt"}
    status, out, _ = await command(settings, "views", "--json")
    [view] = json.loads(out)
    assert (view["staffEmail"], view["route"]) == (EMAIL, "GET /api/staff/orders")
    status, out, _ = await command(settings, "views")
    assert EMAIL in out
    assert "GET /api/staff/orders" in out
    assert await command(settings, "remove", EMAIL) == (0, f"removed {EMAIL}\n", "")
    assert (await command(settings, "remove", EMAIL))[0] == 1
    assert EMAIL in (await command(settings, "views", "--email", EMAIL))[1]
    for arguments in (["remove"], ["views", "--email"]):
        assert await command(settings, *arguments, "nobody@example.com") == (
            *(1, ""),
            "payloops: nobody on the staff has this email address\n",
        )
    assert EMAIL in (await command(settings, "list"))[1]


async def test_what_staff_searched_for_is_shown_as_they_typed_it(
    api: Api, desk: Desk, settings: Settings
) -> None:
    for text in ("%5B/x%5D", "%5Bred%5Dhidden%5B/%5D"):
        assert (await desk.calls.get(f"/api/staff/orders?q={text}")).status == 200
    status, out, err = await command(settings, "views")
    assert (status, err) == (0, "")
    assert '"q":"[/x]"' in out
    assert '"q":"[red]hidden[/]"' in out


@pytest.mark.parametrize(
    ("email", "name", "password", "complaint"),
    [
        (EMAIL, "x", "short", "password: Must have at least 8 characters"),
        (EMAIL, "x", "", "password: Must have at least 8 characters"),
        (EMAIL, "x", "x" * 73, "password: Must be at most 72 bytes"),
        ("nobody", "x", PASSWORD, "email: Must be an email address"),
        ("nobody", "x", "", "email: Must be an email address"),
        (EMAIL, " ", "", "name: Must have 1 to 255 characters, and no control characters"),
        (EMAIL, "x" * 256, PASSWORD, "name: Must have 1 to 255 characters, and no control characters"),
        (EMAIL, "x\x1b[2J", PASSWORD, "name: Must have 1 to 255 characters, and no control characters"),
    ],
)
async def test_who_cannot_be_added_is_told_why(
    settings: Settings, email: str, name: str, password: str, complaint: str
) -> None:
    answer = await command(settings, "add", email, "--name", name, stdin=f"{password}\n")
    assert answer == (1, "", f"payloops: {complaint}\n")


async def test_without_a_database_it_is_said_in_one_line(settings: Settings) -> None:
    dead = Settings.model_validate(
        {**settings.model_dump(), "database_url": "postgresql://nobody@127.0.0.1:1/none"}
    )
    status, out, err = await command(dead, "list")
    assert (status, out) == (1, "")
    assert err.startswith("payloops: the database does not answer: ")
    assert all(line.startswith("payloops: ") for line in err.splitlines())
    assert "\ufffd" not in err  # of the tab before a line of libpq's


async def test_on_a_terminal_the_password_is_asked_for_twice_and_not_shown(
    settings: Settings, pool: AsyncConnectionPool, api: Api
) -> None:
    parent, terminal = pty.openpty()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "payloops", "staff", "add", EMAIL, "--name", "Grace"),
        env=os.environ | environment_of(settings),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_own_terminal,
    )
    os.close(terminal)
    shown = ""
    loop = asyncio.get_running_loop()

    async def until(text: str) -> None:
        nonlocal shown
        async with asyncio.timeout(90):
            while text not in shown:
                shown += (await loop.run_in_executor(None, os.read, parent, 1_024)).decode()
                assert child.returncode is None or text in shown, shown

    await until("Password: ")  # the space comes when nothing is shown any more
    os.write(parent, f"{PASSWORD}\n".encode())
    await until("Repeat for confirmation: ")
    os.write(parent, f"{PASSWORD}\n".encode())
    await until("added")
    assert await asyncio.wait_for(child.wait(), 90) == 0
    os.close(parent)
    assert PASSWORD not in shown
    login = {"email": EMAIL, "password": PASSWORD}
    assert (await api.anyone.post("/api/staff/login", login)).status == 200


def _own_terminal() -> None:
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
