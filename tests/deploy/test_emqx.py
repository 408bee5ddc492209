"""The clustered broker's configuration. EMQX can't be run here: it is parsed, its rules held against Mosquitto's."""

import itertools
import json
import re
from pathlib import Path

import yaml
from paho.mqtt.client import topic_matches_sub

from pollen import topics
from pollen.mosquitto import Account, Limits, access
from pollen.mosquitto.limits import PACKET_OVERHEAD

EMQX = Path(__file__).parents[2] / "deploy" / "emqx"
FLEET = "garden"
SERVICES = [
    Account("gateway-1", "", "gateway"),
    Account("gateway-2", "", "gateway"),
    Account("ops", "", "observer"),
]


def parse(text):
    """The subset of HOCON that emqx.conf is written in: `key = JSON`, `key { … }`, comments on lines of their own."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    tokens = re.findall(r'"[^"\n]*"|[\w.-]+|[{}\[\]=,]', text)
    assert "".join(tokens) == re.sub(r'\s(?=(?:[^"]*"[^"]*")*[^"]*$)', "", text), "nothing is left over"
    table, end = _table(tokens, 0)
    assert end == len(tokens)
    return table


def _table(tokens, at):
    table = {}
    while at < len(tokens) and tokens[at] != "}":
        if tokens[at] == ",":
            at += 1
            continue
        key = tokens[at]
        assert re.fullmatch(r"[a-z0-9_]+", key), key
        assert key not in table, f"{key} is there twice"
        if tokens[at + 1] == "=":
            table[key], at = _value(tokens, at + 2)
        else:
            table[key], at = _value(tokens, at + 1)
            assert isinstance(table[key], dict), key
    return table, at


def _value(tokens, at):
    if tokens[at] == "{":
        table, end = _table(tokens, at + 1)
        assert tokens[end] == "}"
        return table, end + 1
    if tokens[at] == "[":
        values, at = [], at + 1
        while tokens[at] != "]":
            value, at = _value(tokens, at)
            values.append(value)
            at += tokens[at] == ","
        return values, at + 1
    return json.loads(tokens[at]), at + 1


def configuration():
    return parse((EMQX / "emqx.conf").read_text(encoding="utf-8"))


def rules():
    """(allow, user or None for all, action, filters) of each line of acl.conf."""
    found = []
    for line in (EMQX / "acl.conf").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("%%"):
            continue
        if line == "{deny, all}.":
            found.append((False, None, "all", ["#"]))
            continue
        match = re.fullmatch(
            r'\{(allow|deny), (all|\{username, "([\w-]+)"\}), (all|publish|subscribe), (\[.*\])\}\.', line
        )
        assert match, line
        found.append((match[1] == "allow", match[3], match[4], json.loads(match[5])))
    return found


def emqx_grants(user, action, topic):
    """The first rule that matches decides."""
    for allow, who, what, filters in rules():
        if who in (None, user) and what in ("all", action):
            named = [one.replace("${username}", user) for one in filters]
            if any(topic_matches_sub(one, topic) for one in named):
                return allow
    return False


def mosquitto_grants(user, action, topic):
    """As Mosquitto reads the file that it has of us: of a user's own rules denials first, then the patterns."""
    text = access.rules(FLEET, SERVICES, certificates=True)
    kind = {"publish": "write", "subscribe": "read"}[action]
    own, patterns, current = [], [], None
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            current = rest
        elif word == "topic" and current == user:
            own.append(rest.split(" "))
        elif word == "pattern":
            patterns.append(rest.split(" "))
    if any(what == "deny" and topic_matches_sub(one, topic) for what, one in own):
        return False
    granted = [one for what, one in own if what == kind]
    granted += [one.replace("%u", user) for what, one in patterns if what == kind]
    return any(topic_matches_sub(one, topic) for one in granted)


def test_its_rules_grant_what_mosquittos_do():
    users = ["gateway-1", "gateway-2", "ops", "pi-01", "pi-02"]
    every = [topics.device(FLEET, name, leaf) for name in users for leaf in (*topics.FROM_DEVICE, *topics.TO_DEVICE)]
    every += [topics.model(FLEET, "weather", leaf) for leaf in ("head", "weights", "bundle", "infer")]
    every += [
        "pollen/1/other/d/pi-01/update",
        "pollen/1/garden",
        "pollen/2/garden/d/pi-01/update",
        "pi-01",
        "$SYS/brokers",
    ]
    differences = set()
    for user, action, topic in itertools.product(users, ("publish", "subscribe"), every):
        if emqx_grants(user, action, topic) != mosquitto_grants(user, action, topic):
            assert mosquitto_grants(user, action, topic), f"EMQX lets {user} {action} {topic}"
            differences.add((user, action, topic.rsplit("/", 2)[0]))
    # Mosquitto's patterns hold for gateways too, so it lets them read the models that they publish.
    assert differences == {(name, "subscribe", "pollen/1/garden/m") for name in ("gateway-1", "gateway-2")}


def test_only_certificates_get_in_and_they_say_who_it_is():
    found = configuration()
    listener = found["listeners"]["ssl"]["default"]
    assert listener["ssl_options"]["verify"] == "verify_peer"
    assert listener["ssl_options"]["fail_if_no_peer_cert"] is True
    assert set(listener["ssl_options"]["versions"]) == {"tlsv1.2", "tlsv1.3"}
    assert (found["mqtt"]["peer_cert_as_username"], found["mqtt"]["peer_cert_as_clientid"]) == ("cn", "cn")
    assert [found["listeners"][kind]["default"] for kind in ("tcp", "ws", "wss")] == [{"enable": False}] * 3
    assert found["authorization"]["no_match"] == "deny"
    assert [source["type"] for source in found["authorization"]["sources"]] == ["file"]
    assert found["dashboard"]["listeners"]["http"]["bind"].startswith("127.0.0.1:")


def test_its_limits_are_those_of_mosquitto():
    mqtt = configuration()["mqtt"]
    ours = Limits.for_fleet(25_000, 3, message_bytes=16 * 1024**2, update_bytes=100_000)
    assert mqtt["max_packet_size"] == f"{16 * 1024**2 + PACKET_OVERHEAD}B"
    assert mqtt["max_inflight"] == ours.inflight
    assert mqtt["max_mqueue_len"] == ours.queued_messages
    assert mqtt["max_qos_allowed"] == 1
    assert mqtt["shared_subscription"] is True


def test_three_nodes_of_the_last_line_that_may_be_clustered_without_a_licence():
    found = configuration()
    compose = yaml.safe_load((EMQX / "compose.yaml").read_text(encoding="utf-8"))
    names = {service["environment"]["EMQX_NODE__NAME"] for service in compose["services"].values()}
    assert names == set(found["cluster"]["static"]["seeds"])
    assert len(names) == 3
    for service in compose["services"].values():
        assert re.fullmatch(r"emqx/emqx:5\.8\.\d+", service["image"])
        assert service["cap_drop"] == ["ALL"]
        alias = service["networks"]["cluster"]["aliases"][0]
        assert service["environment"]["EMQX_NODE__NAME"] == f"emqx@{alias}"
        assert service["environment"]["EMQX_NODE__COOKIE"].startswith("${EMQX_COOKIE:?")
        mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
        for file in ("emqx.conf", "acl.conf"):
            assert (EMQX / mounted[f"/opt/emqx/etc/{file}"]).exists()
        for option in ("cacertfile", "certfile", "keyfile"):
            file = Path(found["listeners"]["ssl"]["default"]["ssl_options"][option])
            assert str(file.parent) in mounted
    assert "cookie" not in (EMQX / "emqx.conf").read_text(encoding="utf-8").replace("cluster's cookie", "")
