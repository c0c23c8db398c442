use super::*;
use crate::settings::{HookSetting, WaySetting};

/// A machine of two CPUs with these interfaces.
fn host() -> Host {
    Host { cpus: 2, interfaces: Some(["lo", "eth0", "eth3"].map(str::to_owned).into()) }
}

/// The complaints about a text, as they are shown.
fn complaints(text: &str) -> String {
    match parse("evenkeel.toml", text, &host()) {
        Ok(loaded) => lines(&loaded.warnings),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(complaints(text), expected, "\n{text}");
}

/// A service called dns of one frontend, with these lines besides.
fn dns(lines: &str) -> String {
    format!(
        "[[service]]\nname = \"dns\"\n\
         listen = [{{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\", \"tcp\"] }}]\n{lines}"
    )
}

/// The same with these backends, each on a line of its own from line 5 on, and these lines besides.
fn backends(lines: &[&str], besides: &str) -> String {
    dns(&format!("backends = [\n{}\n]\n{besides}", lines.join(",\n")))
}

#[test]
fn a_whole_configuration_without_a_fault_is_read() {
    let text = r#"
interfaces = ["eth3"]
hook = "tc"
way = "redirect-neigh"

[limits]
flows = 1_000_000
slots = 524_288

[[service]]
name = "dns"
listen = [{ interface = "eth3", port = 53, protocols = ["udp", "tcp"] }]
schedule = "per-packet"
backends = ["10.100.13.2", "10.100.13.3", { address = "10.100.13.4" }, "10.100.13.5:5353", "[fd00::5]:5353", "fd00::6"]

[[service]]
name = "web"
listen = [{ address = "192.0.2.80", port = 80, protocols = ["tcp"] }]
selector = "wrr"
backends = ["10.100.13.2", { address = "10.100.13.3:8080", weight = 3 }]

[[service]]
name = "old"
listen = [{ address = "192.0.2.53", port = 5300, protocols = ["udp"] }]
selector = "nth"
rules = [{ every = 4, packet = 3, backend = "10.100.13.6" }, { every = 1, packet = 0, backend = "10.100.13.7" }]
"#;
    let loaded = parse("evenkeel.toml", text, &host()).expect("nothing is wrong with it");
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.settings.interfaces, ["eth3"]);
    assert_eq!((loaded.settings.hook.name(), loaded.settings.way.name()), ("tc", "redirect-neigh"));
    assert_eq!((loaded.settings.limits.flows, loaded.settings.limits.services), (1_000_000, 1024));
    let services = &loaded.desired.services;
    assert_eq!(
        services.iter().map(|service| service.choice.selector().name()).collect::<Vec<_>>(),
        ["rr", "wrr", "nth"]
    );
    let shown: Vec<_> = services[0].choice.backends().iter().map(ToString::to_string).collect();
    let expected = ["10.100.13.2", "10.100.13.3", "10.100.13.4", "10.100.13.5:5353", "[fd00::5]:5353", "fd00::6"];
    assert_eq!(shown, expected);
}

#[test]
fn what_is_no_toml_is_told_with_its_place() {
    check("[[service]\nname = 5", "evenkeel.toml:1:11: not TOML: unclosed array table, expected `]`");
    check(&dns("backends = [\"10.0.0.2\"]\nbackends = [\"10.0.0.3\"]"), "evenkeel.toml:5:1: not TOML: duplicate key");
}

#[test]
fn unknown_keys_are_told_with_the_nearest_known() {
    check(
        &dns("backend = [\"10.0.0.2\"]\nbackends = [\"10.0.0.2\"]"),
        "evenkeel.toml:4:1: service dns: unknown key `backend`; did you mean `backends`?",
    );
    check(
        &format!("colour = 1\n{}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:1:1: unknown key `colour`; known here: interfaces, hook, way, limits, service",
    );
    check(
        &format!("[limits]\nflow = 1\n{}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:2:1: unknown key `flow`; did you mean `flows`?",
    );
    check(
        &backends(&["{ adress = \"10.0.0.2\" }"], ""),
        "evenkeel.toml:5:1: service dns: `address` is missing; write for example address = \"10.0.0.2\"\n\
         evenkeel.toml:5:3: service dns: unknown key `adress`; did you mean `address`?",
    );
}

#[test]
fn keys_and_values_of_later_milestones_are_not_supported_yet() {
    for key in ["health", "timeouts", "affinity", "source-ranges", "mode"] {
        check(
            &dns(&format!("backends = [\"10.0.0.2\"]\n{key} = {{ kind = \"dns\" }}")),
            &format!("evenkeel.toml:5:1: service dns: `{key}` is not supported yet; remove it"),
        );
    }
    for key in ["kubernetes", "metrics"] {
        check(
            &format!("{}\n[{key}]\nport = 1", dns("backends = [\"10.0.0.2\"]")),
            &format!("evenkeel.toml:5:2: `{key}` is not supported yet; remove it"),
        );
    }
    for selector in ["lc", "wlc", "sed", "nq", "sh", "dh", "hash", "maglev", "p2c", "least-outstanding"] {
        check(
            &dns(&format!("backends = [\"10.0.0.2\"]\nselector = \"{selector}\"")),
            &format!(
                "evenkeel.toml:5:12: service dns: selector `{selector}` is not supported yet; \
                 use random, nth, rr or wrr"
            ),
        );
    }
}

#[test]
fn unknown_values_are_told_with_the_known() {
    check(
        &dns("backends = [\"10.0.0.2\"]\nselector = \"roundrobin\"\nschedule = \"per-flows\""),
        "evenkeel.toml:5:12: service dns: unknown selector `roundrobin`; use random, nth, rr or wrr\n\
         evenkeel.toml:6:12: service dns: unknown schedule `per-flows`; did you mean `per-flow`?",
    );
    check(
        "way = \"peer\"\n[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\n\
         listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"sctp\"] }]",
        "evenkeel.toml:1:7: unknown way `peer`; use auto, redirect-peer, redirect-neigh, xdp-redirect or stack\n\
         evenkeel.toml:5:61: service dns: unknown protocol `sctp`; use udp or tcp",
    );
}

#[test]
fn values_of_the_wrong_type_are_told_with_the_right_one() {
    check(
        "[[service]]\nname = 5\nselector = 1\nbackends = \"10.0.0.2\"\n\
         listen = [{ address = 192.0, port = \"53\", protocols = \"udp\" }]",
        "evenkeel.toml:2:8: service #1: name is an integer; write a text, such as \"dns\"\n\
         evenkeel.toml:3:12: service #1: selector is an integer; write a text, in quotes\n\
         evenkeel.toml:4:12: service #1: backends is a text; \
         write a list of addresses, such as [\"10.0.0.2\", \"10.0.0.3:5353\"]\n\
         evenkeel.toml:5:23: service #1: address is a fraction; write a text, such as \"192.0.2.53\"\n\
         evenkeel.toml:5:37: service #1: port is a text; write an integer, such as 53\n\
         evenkeel.toml:5:55: service #1: protocols is a text; write a list, such as [\"udp\", \"tcp\"]",
    );
    check(
        "service = 1\nlimits = true",
        "evenkeel.toml:1:11: service is an integer; write a list of tables, each with [[service]]\n\
         evenkeel.toml:2:10: limits is true or false; write a table, [limits]",
    );
    check(
        &dns("selector = \"wrr\"\nbackends = [7, { address = \"10.0.0.2\", weight = \"2\" }]"),
        "evenkeel.toml:5:13: service dns: a backend is an integer; \
         write an address, such as \"10.0.0.2\", or a table, such as { address = \"10.0.0.2\", weight = 2 }\n\
         evenkeel.toml:5:49: service dns: weight is a text; write an integer, such as 2",
    );
}

#[test]
fn what_is_missing_or_empty_is_told_with_an_example() {
    check(
        "[[service]]",
        "evenkeel.toml:1:1: service #1: `name` is missing; write for example name = \"dns\"\n\
         evenkeel.toml:1:1: service #1: `listen` is missing; write for example \
         listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\", \"tcp\"] }]\n\
         evenkeel.toml:1:1: service #1: `backends` is missing; write for example \
         backends = [\"10.0.0.2\", \"10.0.0.3\"]",
    );
    check(
        &dns("backends = []"),
        "evenkeel.toml:4:12: service dns: `backends` is empty; \
         write for example backends = [\"10.0.0.2\", \"10.0.0.3\"]",
    );
    check(
        "[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\nlisten = [{}, { address = \"192.0.2.53\", interface = \"eth3\", port = 53, protocols = [] }]",
        "evenkeel.toml:4:11: service dns: a listener has either an `address` or an `interface`; add one\n\
         evenkeel.toml:4:11: service dns: `port` is missing; write for example port = 53\n\
         evenkeel.toml:4:11: service dns: `protocols` is missing; write for example protocols = [\"udp\", \"tcp\"]\n\
         evenkeel.toml:4:15: service dns: a listener has either an `address` or an `interface`; remove one\n\
         evenkeel.toml:4:84: service dns: `protocols` is empty; write for example protocols = [\"udp\", \"tcp\"]",
    );
    check(
        "[[service]]\nname = \"dns\"\nlisten = []\nselector = \"nth\"\nrules = []",
        "evenkeel.toml:3:10: service dns: `listen` is empty; write for example \
         listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\", \"tcp\"] }]\n\
         evenkeel.toml:5:9: service dns: `rules` is empty; write for example \
         rules = [{ every = 2, packet = 0, backend = \"10.0.0.2\" }, { every = 1, packet = 0, backend = \"10.0.0.3\" }]",
    );
}

#[test]
fn bad_addresses_and_ports_are_refused() {
    check(
        &backends(
            &[
                "\"10.0.0.300\"",
                "\"ns1.example\"",
                "\"10.0.0.2:\"",
                "\"10.0.0.2:0\"",
                "\"10.0.0.2:65536\"",
                "\"[10.0.0.2]:53\"",
                "\"[fd00::2]53\"",
                "\"::ffff:10.0.0.2\"",
            ],
            "",
        ),
        "evenkeel.toml:5:1: service dns: `10.0.0.300` is no backend; \
         write for example 192.0.2.7, 192.0.2.7:53, 2001:db8::7 or [2001:db8::7]:53\n\
         evenkeel.toml:6:1: service dns: `ns1.example` is no backend; \
         write for example 192.0.2.7, 192.0.2.7:53, 2001:db8::7 or [2001:db8::7]:53\n\
         evenkeel.toml:7:1: service dns: `` is no port; write 1 to 65535\n\
         evenkeel.toml:8:1: service dns: `0` is no port; write 1 to 65535\n\
         evenkeel.toml:9:1: service dns: `65536` is no port; write 1 to 65535\n\
         evenkeel.toml:10:1: service dns: `[10.0.0.2]:53` is no backend; \
         write for example 192.0.2.7, 192.0.2.7:53, 2001:db8::7 or [2001:db8::7]:53\n\
         evenkeel.toml:11:1: service dns: `[fd00::2]53` is no backend; \
         write for example 192.0.2.7, 192.0.2.7:53, 2001:db8::7 or [2001:db8::7]:53\n\
         evenkeel.toml:12:1: service dns: `::ffff:10.0.0.2` is an IPv4 address; write 10.0.0.2",
    );
    let unusable = |text: &str, kind: &str| {
        check(
            &dns(&format!("backends = [\"10.0.0.2\", \"{text}\"]")),
            &format!(
                "evenkeel.toml:4:25: service dns: {text} is {kind} address; \
                 write one that a single host has and others can reach"
            ),
        );
    };
    unusable("0.0.0.0", "the unspecified");
    unusable("::", "the unspecified");
    unusable("224.0.0.1", "a multicast");
    unusable("ff02::1", "a multicast");
    unusable("255.255.255.255", "the broadcast");
    unusable("127.0.0.1", "a loopback");
    unusable("::1", "a loopback");
    unusable("fe80::1", "a link-local");
    unusable("fe80::1%eth3", "a link-local");
    check(
        "[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\nlisten = [\n\
         { address = \"192.0.2.53:53\", port = 0, protocols = [\"udp\"] },\n\
         { address = \"fd00::1%eth3\", port = 70000, protocols = [\"udp\"] },\n]",
        "evenkeel.toml:5:13: service dns: `192.0.2.53:53` is no IP address; \
         write for example 192.0.2.53 or 2001:db8::53\n\
         evenkeel.toml:5:37: service dns: `0` is no port; write 1 to 65535\n\
         evenkeel.toml:6:13: service dns: `fd00::1%eth3` is no IP address; \
         write for example 192.0.2.53 or 2001:db8::53\n\
         evenkeel.toml:6:36: service dns: `70000` is no port; write 1 to 65535",
    );
}

#[test]
fn a_backend_listed_twice_is_refused_with_or_without_its_port() {
    check(
        &backends(&["\"10.0.0.7\"", "\"10.0.0.8\"", "\"10.0.0.7:53\""], ""),
        "evenkeel.toml:7:1: service dns: backend 10.0.0.7:53 is listed twice; remove one, or give it a weight",
    );
    check(
        &backends(&["{ address = \"10.0.0.7\" }", "\"10.0.0.7\"", "\"10.0.0.7:54\""], ""),
        "evenkeel.toml:6:1: service dns: backend 10.0.0.7:53 is listed twice; remove one, or give it a weight",
    );
}

#[test]
fn a_backend_that_is_its_own_frontend_is_refused() {
    check(
        &backends(&["\"192.0.2.53\"", "\"10.0.0.7\""], ""),
        "evenkeel.toml:5:1: service dns: backend 192.0.2.53:53 is the frontend itself; \
         remove it, or give it another port",
    );
    check(&backends(&["\"192.0.2.53:5353\"", "\"10.0.0.7\""], ""), "");
}

#[test]
fn a_frontend_is_claimed_once() {
    let other = dns("backends = [\"10.0.0.3\"]").replace("\"dns\"", "\"other\"").replace("\"udp\", ", "");
    check(
        &format!("{}\n{other}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:7:11: service other: frontend 192.0.2.53:53/tcp is claimed by service dns as well; \
         let one of them have it",
    );
    let listen = "{ interface = \"eth3\", port = 53, protocols = [\"udp\"] }";
    check(
        &format!("[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\nlisten = [\n{listen},\n{listen}]"),
        "evenkeel.toml:6:1: service dns: frontend eth3:53/udp is listed twice; remove one",
    );
}

#[test]
fn a_name_is_given_once_and_can_be_shown() {
    let other = dns("backends = [\"10.0.0.3\"]").replace("192.0.2.53", "192.0.2.54");
    check(
        &format!("{}\n{other}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:6:8: service dns: another service has this name; give each its own",
    );
    check(
        &dns("backends = [\"10.0.0.2\"]").replace("\"dns\"", "\"d n s\""),
        "evenkeel.toml:2:8: service d n s: `d n s` cannot be a name; \
         use up to 63 letters, digits, `-`, `_`, `.` and `/`",
    );
}

#[test]
fn weights_are_in_range_and_where_they_are_taken() {
    check(
        &backends(
            &[
                "{ address = \"10.0.0.2\", weight = 0 }",
                "{ address = \"10.0.0.3\", weight = 257 }",
                "{ address = \"10.0.0.4\", weight = -1 }",
                "{ address = \"10.0.0.5\", weight = 256 }",
            ],
            "selector = \"wrr\"",
        ),
        "evenkeel.toml:5:34: service dns: weight 0 is out of range; write 1 to 256\n\
         evenkeel.toml:6:34: service dns: weight 257 is out of range; write 1 to 256\n\
         evenkeel.toml:7:34: service dns: weight -1 is out of range; write 1 to 256",
    );
    for selector in ["rr", "nth"] {
        check(
            &backends(&["{ address = \"10.0.0.2\", weight = 2 }"], &format!("selector = \"{selector}\"")),
            &format!(
                "evenkeel.toml:5:34: service dns: selector {selector} takes no weights; \
                 use random or wrr, or remove the weight"
            ),
        );
    }
}

#[test]
fn a_file_without_services_is_refused() {
    check("", "evenkeel.toml:1:1: no service; add a [[service]]");
}

#[test]
fn per_packet_needs_udp() {
    check(
        &dns("backends = [\"10.0.0.2\"]\nschedule = \"per-packet\"").replace("\"udp\", ", ""),
        "evenkeel.toml:5:12: service dns: schedule per-packet concerns UDP, and no frontend has it; \
         add \"udp\" to the protocols, or use per-flow",
    );
}

#[test]
fn a_backend_needs_a_frontend_of_its_family() {
    check(
        &backends(&["\"10.0.0.2\"", "\"fd00::2\""], ""),
        "evenkeel.toml:6:1: service dns: backend fd00::2 is IPv6, and no frontend is; \
         add an IPv6 frontend, or remove the backend",
    );
}

#[test]
fn a_frontend_without_backends_of_its_family_is_warned_about() {
    let text = "[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\nlisten = [\n\
         { address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] },\n\
         { address = \"2001:db8::53\", port = 53, protocols = [\"udp\"] },\n]";
    check(
        text,
        "evenkeel.toml:6:13: service dns: frontend 2001:db8::53 is IPv6, and no backend is: it is left to the host",
    );
    assert!(parse("evenkeel.toml", text, &host()).is_ok());
}

#[test]
fn rules_that_leave_choices_unmatched_are_warned_about_with_the_share() {
    let copies = "{ every = 4, packet = 0, backend = \"10.0.0.2\" },\n".repeat(4);
    let text = dns(&format!("selector = \"nth\"\nrules = [\n{copies}]"));
    check(
        &text,
        "evenkeel.toml:5:9: service dns: the rules leave 81 of 256 (31.64 %) of new choices unmatched, \
         which pass to the host; end with a rule of every = 1",
    );
    assert!(parse("evenkeel.toml", &text, &host()).is_ok());
    check(
        &dns(
            "selector = \"nth\"\nrules = [\n{ every = 1, packet = 0, backend = \"10.0.0.2\" },\n{ every = 2, backend = \"10.0.0.3\" }]",
        ),
        "evenkeel.toml:7:1: service dns: nothing reaches this rule: one before it takes every = 1",
    );
}

#[test]
fn rules_are_in_range_and_with_nth_only() {
    check(
        &dns("selector = \"nth\"\nrules = [\n{ every = 4, packet = 4, backend = \"10.0.0.2\" },\n\
             { every = 4, packet = -1, backend = \"10.0.0.3\" },\n{ every = 0, packet = 0, backend = \"10.0.0.4\" },\n\
             { every = 4294967296, packet = 0, backend = \"10.0.0.5\" },\n{ packet = 0 }]"),
        "evenkeel.toml:6:23: service dns: packet = 4 never comes with every = 4; write 0 to 3\n\
         evenkeel.toml:7:23: service dns: packet = -1 never comes with every = 4; write 0 to 3\n\
         evenkeel.toml:8:11: service dns: every = 0 is out of range; write 1 to 4294967295\n\
         evenkeel.toml:9:11: service dns: every = 4294967296 is out of range; write 1 to 4294967295\n\
         evenkeel.toml:10:1: service dns: `every` is missing; write for example every = 4\n\
         evenkeel.toml:10:1: service dns: `backend` is missing; write for example backend = \"10.0.0.2\"",
    );
    let rules = "rules = [{ every = 1, packet = 0, backend = \"10.0.0.2\" }]";
    check(&dns(rules), "evenkeel.toml:4:9: service dns: selector rr takes no rules; use nth, or give it `backends`");
    check(
        &dns(&format!("selector = \"nth\"\nbackends = [\"10.0.0.2\"]\n{rules}")),
        "evenkeel.toml:6:9: service dns: `rules` name their backends themselves; remove `backends` or `rules`",
    );
}

#[test]
fn a_chain_has_at_most_32_rules() {
    let rules = "{ every = 1, packet = 0, backend = \"10.0.0.2\" },".repeat(33);
    assert!(complaints(&dns(&format!("selector = \"nth\"\nrules = [{rules}]"))).starts_with(
        "evenkeel.toml:5:9: service dns: 33 rules are more than 32; rr is as even with any number of backends"
    ));
    let list = |count: u32| (1..=count).map(|n| format!("\"10.0.0.{n}\"")).collect::<Vec<_>>().join(", ");
    check(
        &dns(&format!("selector = \"nth\"\nbackends = [{}]", list(40))),
        "evenkeel.toml:5:12: service dns: 40 rules are more than 32; rr is as even with any number of backends",
    );
    check(&dns(&format!("selector = \"nth\"\nbackends = [{}]", list(32))), "");
}

#[test]
fn an_unknown_interface_is_told_with_the_known() {
    check(
        &format!("interfaces = [\"eth1\", \"wan\"]\n{}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:1:15: this host has no interface `eth1`; did you mean `eth0`?\n\
         evenkeel.toml:1:23: this host has no interface `wan`; it has eth0, eth3, lo",
    );
    let text = "[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\n\
                listen = [{ interface = \"eht3\", port = 53, protocols = [\"udp\"] }]";
    check(text, "evenkeel.toml:4:25: service dns: this host has no interface `eht3`; did you mean `eth3`?");
    assert!(parse("evenkeel.toml", text, &Host { interfaces: None, ..host() }).is_ok());
}

#[test]
fn what_is_over_the_limits_is_told_with_the_memory_it_would_take() {
    check(
        &format!("[limits]\nservices = 1\nbackends = 3\n{}", dns("backends = [\"10.0.0.2\", \"10.0.0.3\"]")),
        "evenkeel.toml:2:12: 2 services (one for each family, protocol and port) are more than limits.services = 1; \
         raise it to 2 or more (28.5 MiB of memory for all maps)\n\
         evenkeel.toml:3:12: 4 backends (counted in each service) are more than limits.backends = 3; \
         raise it to 4 or more (28.5 MiB of memory for all maps)",
    );
    check(
        &format!("[limits]\nflows = 100_000_000\nreplies = 0\n{}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:2:9: limits.flows = 100000000 is out of range and would take 10.0 GiB of memory for all \
         maps; write 1 to 80000000, which takes 5.0 GiB\n\
         evenkeel.toml:3:11: limits.replies = 0 is out of range; write 1 to 80000000, which takes 2.0 GiB",
    );
    let weights = (0..2100).map(|n| {
        format!("{{ address = \"10.1.{}.{}\", weight = {} }}", n / 250, n % 250 + 1, if n == 0 { 255 } else { 256 })
    });
    check(
        &format!("{}\nselector = \"wrr\"", dns(&format!("backends = [{}]", weights.collect::<Vec<_>>().join(", ")))),
        "evenkeel.toml:4:12: service dns: the weights need 539699 slots, and a service has at most 524288; \
         use smaller weights",
    );
}

#[test]
fn what_can_never_be_is_told_with_the_memory_it_would_take_and_with_what_can() {
    check(
        &format!("[limits]\nservices = 70000\n{}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:2:12: limits.services = 70000 is out of range and would take 90.9 MiB of memory for all \
         maps; write 1 to 65536, which takes 83.5 MiB",
    );
    let listens: String = (1..=32_769)
        .map(|port| format!("{{ address = \"192.0.2.53\", port = {port}, protocols = [\"udp\", \"tcp\"] }},\n"))
        .collect();
    check(
        &format!(
            "[limits]\nservices = 65536\nbackends = 262144\n[[service]]\nname = \"dns\"\n\
             backends = [\"10.0.0.2:53000\"]\nlisten = [\n{listens}]"
        ),
        "evenkeel.toml:2:12: 65538 services (one for each family, protocol and port) would take 229.5 MiB of memory \
         for all maps and are more than the 65536 that there can be; configure at most 65536",
    );
}

#[test]
fn more_than_one_service_of_many_slots_needs_a_larger_limit() {
    let weights = (0..1100).map(|n| {
        format!("{{ address = \"10.1.{}.{}\", weight = {} }}", n / 250, n % 250 + 1, if n == 0 { 255 } else { 256 })
    });
    let listed = weights.collect::<Vec<_>>().join(", ");
    check(
        &format!("{}\nselector = \"random\"", dns(&format!("backends = [{listed}]"))),
        "evenkeel.toml:1:1: 2097152 words of slots are more than limits.slots = 524288; \
         raise it to 2097152 or more (43.4 MiB of memory for all maps)",
    );
}

#[test]
fn an_endpoint_is_asked_either_per_packet_or_per_flow() {
    let other = dns("schedule = \"per-packet\"\nbackends = [\"10.0.0.3\", \"10.0.0.2\"]");
    let other = other.replace("192.0.2.53", "192.0.2.54").replace("\"dns\"", "\"other\"");
    check(
        &format!("{}\n{other}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:9:25: service other: backend 10.0.0.2:53/udp is used per-packet by service other and per-flow \
         by service dns, which cannot tell each other's replies apart; use one schedule, or another address or port",
    );
}

#[test]
fn all_faults_of_a_file_are_told_at_once_in_their_order() {
    let text = "hook = \"xpd\"\n[limits]\nflows = 0\n[[service]]\nname = \"a\"\nlisten = [{ address = \"x\", port = 1, protocols = [\"udp\"] }]\n\
                backends = [\"10.0.0.2\", \"10.0.0.2\"]\n[[service]]\nname = \"a\"\nselektor = \"rr\"\n\
                listen = [{ address = \"192.0.2.1\", port = 1, protocols = [\"tcp\"] }]\nbackends = []";
    let lines: Vec<String> =
        complaints(text).lines().map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect();
    let places = ["1:8", "3:9", "6:23", "7:25", "9:8", "10:1", "12:12"];
    assert_eq!(lines, places.map(|place| format!("evenkeel.toml:{place}:")));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(Path::new("/nonexistent/evenkeel.toml"), &host()).expect_err("there is none");
    assert_eq!(error.to_string(), "/nonexistent/evenkeel.toml: No such file or directory (os error 2)");
}

#[test]
fn columns_count_characters() {
    check(
        "# ä\n[[service]] # ö\nname = \"ä\" \nbackends = [\"10.0.0.2\"]\n\
         listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] }]",
        "evenkeel.toml:3:8: service ä: `ä` cannot be a name; use up to 63 letters, digits, `-`, `_`, `.` and `/`",
    );
}

#[test]
fn lists_of_cpus_are_counted() {
    for (list, count) in [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7\n", 5), ("", 1)] {
        assert_eq!(cpus(list), count, "{list:?}");
    }
}

#[test]
fn a_label_of_addresses_is_no_interface() {
    let listening = |name: &str| dns("backends = [\"10.0.0.2\"]").replace("address = \"192.0.2.53\"", name);
    check(
        &listening("interface = \"eth3:1\""),
        "evenkeel.toml:3:25: service dns: `eth3:1` is a label of addresses on eth3; write interface = \"eth3\" for all \
         of them, or the address itself",
    );
    check(
        &format!("interfaces = [\"eth0\", \"eth3:web\"]\n{}", dns("backends = [\"10.0.0.2\"]")),
        "evenkeel.toml:1:23: `eth3:web` is a label of addresses on eth3; write interfaces = [\"eth3\"]",
    );
    check(
        &listening("interface = \"br0:1\""),
        "evenkeel.toml:3:25: service dns: this host has no interface `br0:1`; it has eth0, eth3, lo",
    );
}

#[test]
fn only_folders_are_interfaces() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("eth3")).expect("made");
    std::os::unix::fs::symlink(folder.path().join("eth3"), folder.path().join("lan0")).expect("linked");
    std::fs::write(folder.path().join("bonding_masters"), "bond0\n").expect("written");
    assert_eq!(interfaces(folder.path()).expect("listed"), ["eth3", "lan0"].map(str::to_owned).into());
}

#[test]
fn every_place_is_found() {
    for text in ["one\n\nthree\n", "ä\n\nö = 5\n", ""] {
        let lines = Lines::new(text);
        let mut expected = (1, 1);
        for (offset, character) in text.char_indices() {
            assert_eq!(lines.position(Place(offset)), expected, "{offset} of {text:?}");
            expected = if character == '\n' { (expected.0 + 1, 1) } else { (expected.0, expected.1 + 1) };
        }
        assert_eq!(lines.position(Place(text.len())), expected);
        assert_eq!(lines.position(Place(text.len() + 1)), expected, "beyond the end");
    }
}

#[test]
fn every_hook_and_every_way_is_read_by_its_name() {
    for hook in HookSetting::ALL {
        let text = format!("hook = \"{}\"\n{}", hook.name(), dns("backends = [\"10.0.0.2\"]"));
        let loaded = parse("evenkeel.toml", &text, &host()).expect("nothing is wrong with it");
        assert_eq!((loaded.settings.hook, loaded.settings.way), (hook, WaySetting::Auto));
    }
    for way in WaySetting::ALL {
        let text = format!("way = \"{}\"\n{}", way.name(), dns("backends = [\"10.0.0.2\"]"));
        let loaded = parse("evenkeel.toml", &text, &host()).expect("nothing is wrong with it");
        assert_eq!((loaded.settings.hook, loaded.settings.way), (HookSetting::Auto, way));
    }
}
