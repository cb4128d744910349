//! What is printed for policies as tired people write them. Each answer is one line with the place, what is wrong, and
//! what would be right, in the words of the policy file.

use guard_policy::{KernelTick, Policy};

/// The answer for each of these texts, with `before` in front of it.
fn answers(before: &str, texts: &[&str]) -> String {
    let clock = KernelTick { tick_ns: 4_000_000 };
    let texts = texts.iter().map(|text| {
        let refused = Policy::parse(&format!("{before}{text}\n"), "F", clock);
        let refused = refused.map(|_| ()).unwrap_err().to_string();
        assert_eq!(refused.lines().count(), 1, "{refused}");
        format!("{}\n    {refused}\n", text.replace('\n', "\n|"))
    });
    texts.collect()
}

/// Words that belong to this program, not to a policy.
const INTERNAL: [&str; 12] = [
    "serde",
    "toml::",
    "variant",
    "untagged",
    "field",
    "sequence",
    "invalid type",
    "integer `",
    "struct",
    "deserializ",
    "i64",
    "u16",
];

#[track_caller]
fn assert_plain(answers: &str) {
    for word in INTERNAL {
        assert!(!answers.contains(word), "{word:?} is in {answers}");
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_key_that_was_meant_or_its_place() {
    let service = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";
    let source = "[[source]]\nname = \"office\"\ncidrs = [\"198.51.100.0/24\"]\n";
    let all = [
        answers(
            "",
            &[
                "moed = \"enforce\"",
                "Mode = \"enforce\"",
                "interface = [\"eth0\"]",
                "iface = \"eth0\"",
                "on-exit = \"keep\"",
                "limit.packets = \"5k/s\"",
                "[limti]",
                "[[services]]",
                "[[rule]]",
                "[[whitelist]]",
                "ports = [\"tcp/80\"]",
                "port = 80",
                "cidrs = [\"198.51.100.0/24\"]",
                "listen = \"127.0.0.1:9469\"",
                "socket = \"/var/run/docker.sock\"",
                "packets = \"5k/s\"",
                "metrics = \"127.0.0.1:9469\"",
                "enforce = true",
                "no_such_key = 1",
                "docker.sock = \"\"",
                "docker.label = \"off\"",
                "web.lisen = \"127.0.0.1:9469\"",
                "web.port = 9469",
                "docker.mode = \"enforce\"",
                "limits.packet = \"5k/s\"",
                "limits.burst = 5",
                "[docker]\nscope = \"host\"",
                "[web]\ninterfaces = [\"eth0\"]",
            ],
        ),
        answers(
            service,
            &[
                "web.listen = \"127.0.0.1:9469\"",
                "docker.socket = \"\"",
                "scope = \"host\"",
                "interfaces = [\"eth0\"]",
                "on_exit = \"keep\"",
                "limits.packets = \"5k/s\"",
                "conections = \"50/s\"",
                "connections = \"50/s\"",
                "packets = \"2k/s\"",
                "per = { ipv4 = 24 }",
                "rate = 100",
                "limit.conections = \"50/s\"",
                "limit.rate = \"50/s\"",
                "limit.packets = { rat = \"50/s\" }",
                "limit.packets = { rate = \"50/s\", brust = 200 }",
                "limit.packets = { rate = \"50/s\", size = 200 }",
                "limit.per = { v4 = 24 }",
                "[service.limits]\npackets = \"2k/s\"",
                "[service.totals]\npackets = \"2k/s\"",
                "[service.web]\nlisten = \"127.0.0.1:9469\"",
                "[[service.source]]\nname = \"x\"",
                "allow = [\"198.51.100.0/24\"]",
                "form = [\"any\"]",
                "cidrs = [\"198.51.100.0/24\"]",
                "factor = 20",
                "adress = \"203.0.113.5\"",
                "listen = \"203.0.113.5\"",
                "protocol = \"tcp\"",
                "comment = \"x\"",
                "[service.total]\nper = { ipv4 = 24 }",
                "[service.limit]\npackets = \"2k/s\"\nfrom = [\"any\"]",
                "[service.limit]\npackets = \"2k/s\"\nmode = \"enforce\"",
                "address.name = \"203.0.113.5\"",
            ],
        ),
        answers(
            source,
            &[
                "expire = 2027-01-31T00:00:00Z",
                "until = 2027-01-31T00:00:00Z",
                "comment = \"x\"",
                "cidr = \"198.51.100.0/24\"",
                "mode = \"enforce\"",
                "ports = [\"tcp/80\"]",
                "allow = true",
                "excempt = true",
            ],
        ),
    ];
    let all = all.concat();
    assert_plain(&all);
    insta::assert_snapshot!(all, @r#"
        moed = "enforce"
            F:1: unknown key `moed`: did you mean `mode`? The keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        Mode = "enforce"
            F:1: unknown key `Mode`: did you mean `mode`? The keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        interface = ["eth0"]
            F:1: unknown key `interface`: did you mean `interfaces`? The keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        iface = "eth0"
            F:1: unknown key `iface`: write `interfaces`, such as interfaces = ["eth0"]
        on-exit = "keep"
            F:1: unknown key `on-exit`: did you mean `on_exit`? The keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        limit.packets = "5k/s"
            F:1: unknown key `limit`: did you mean `limits`? The keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        [limti]
            F:1: unknown key `limti`: did you mean `limit`? It belongs to a [[service]]: write it below that line
        [[services]]
            F:1: unknown key `services`: did you mean [[service]]? The keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        [[rule]]
            F:1: unknown key `rule`: write [[service]] and its keys below it
        [[whitelist]]
            F:1: unknown key `whitelist`: write [[source]] and its keys below it
        ports = ["tcp/80"]
            F:1: unknown key `ports`: it belongs to a [[service]]: write it below that line
        port = 80
            F:1: unknown key `port`: did you mean `ports`? It belongs to a [[service]]: write it below that line
        cidrs = ["198.51.100.0/24"]
            F:1: unknown key `cidrs`: it belongs to a [[source]]: write it below that line
        listen = "127.0.0.1:9469"
            F:1: unknown key `listen`: write `web.listen`
        socket = "/var/run/docker.sock"
            F:1: unknown key `socket`: write `docker.socket`
        packets = "5k/s"
            F:1: unknown key `packets`: write `limits.packets` (each source, at ports that no service lists)
        metrics = "127.0.0.1:9469"
            F:1: unknown key `metrics`: write `web`, such as web.listen = "127.0.0.1:9469"
        enforce = true
            F:1: unknown key `enforce`: write `mode`, such as mode = "enforce"
        no_such_key = 1
            F:1: unknown key `no_such_key`: the keys of a policy are `mode`, `interfaces`, `scope`, `cells`, `on_exit`, `docker`, `web`, `limits`, [[service]] and [[source]]
        docker.sock = ""
            F:1: unknown key `sock` in [docker]: did you mean `socket`? The keys there are `socket` and `labels`
        docker.label = "off"
            F:1: unknown key `label` in [docker]: did you mean `labels`? The keys there are `socket` and `labels`
        web.lisen = "127.0.0.1:9469"
            F:1: unknown key `lisen` in [web]: did you mean `listen`? The only key there is `listen`
        web.port = 9469
            F:1: unknown key `port` in [web]: write `listen`, such as listen = "127.0.0.1:9469"
        docker.mode = "enforce"
            F:1: `mode` belongs at the top of the file, before the first section: below [docker] it is read as a key of [docker]
        limits.packet = "5k/s"
            F:1: unknown key `packet` in [limits]: did you mean `packets`? The keys there are `packets`, `bytes`, `connections`, `per` and `total`
        limits.burst = 5
            F:1: unknown key `burst` in [limits]: a burst stands beside its rate, such as packets = { rate = "2k/s", burst = 4000 }
        [docker]
        |scope = "host"
            F:2: `scope` belongs at the top of the file, before the first section: below [docker] it is read as a key of [docker]
        [web]
        |interfaces = ["eth0"]
            F:2: `interfaces` belongs at the top of the file, before the first section: below [web] it is read as a key of [web]
        web.listen = "127.0.0.1:9469"
            F:4: `web.listen` belongs at the top of the file, before the first section: below [[service]] it is read as a key of [[service]]; or write it below a line [web]
        docker.socket = ""
            F:4: `docker.socket` belongs at the top of the file, before the first section: below [[service]] it is read as a key of [[service]]; or write it below a line [docker]
        scope = "host"
            F:4: `scope` belongs at the top of the file, before the first section: below [[service]] it is read as a key of [[service]]
        interfaces = ["eth0"]
            F:4: `interfaces` belongs at the top of the file, before the first section: below [[service]] it is read as a key of [[service]]
        on_exit = "keep"
            F:4: `on_exit` belongs at the top of the file, before the first section: below [[service]] it is read as a key of [[service]]
        limits.packets = "5k/s"
            F:4: unknown key `limits` in [[service]]: did you mean `limit`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        conections = "50/s"
            F:4: unknown key `conections` in [[service]]: did you mean `limit.connections` (each source) or `total.connections` (all sources together)?
        connections = "50/s"
            F:4: unknown key `connections` in [[service]]: write `limit.connections` (each source) or `total.connections` (all sources together)
        packets = "2k/s"
            F:4: unknown key `packets` in [[service]]: write `limit.packets` (each source) or `total.packets` (all sources together)
        per = { ipv4 = 24 }
            F:4: unknown key `per` in [[service]]: write `limit.per` (each source)
        rate = 100
            F:4: unknown key `rate` in [[service]]: write `limit`, such as limit.packets = "2k/s"
        limit.conections = "50/s"
            F:4: unknown key `conections` in [service.limit]: did you mean `connections`? The keys there are `packets`, `bytes`, `connections` and `per`
        limit.rate = "50/s"
            F:4: unknown key `rate` in [service.limit]: write `packets`, such as packets = "2k/s"
        limit.packets = { rat = "50/s" }
            F:4: unknown key `rat` in [service.limit.packets]: did you mean `rate`? The keys there are `rate` and `burst`
        limit.packets = { rate = "50/s", brust = 200 }
            F:4: unknown key `brust` in [service.limit.packets]: did you mean `burst`? The keys there are `rate` and `burst`
        limit.packets = { rate = "50/s", size = 200 }
            F:4: unknown key `size` in [service.limit.packets]: write `burst`, such as burst = 4000
        limit.per = { v4 = 24 }
            F:4: unknown key `v4` in [service.limit.per]: write `ipv4`, such as ipv4 = 32
        [service.limits]
        |packets = "2k/s"
            F:4: unknown key `limits` in [[service]]: did you mean `limit`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        [service.totals]
        |packets = "2k/s"
            F:4: unknown key `totals` in [[service]]: did you mean `total`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        [service.web]
        |listen = "127.0.0.1:9469"
            F:4: `web.listen` belongs at the top of the file, before the first section: below [[service]] it is read as a key of [[service]]; or write it below a line [web]
        [[service.source]]
        |name = "x"
            F:4: `source` is a section of its own: write it as [[source]], without service before it
        allow = ["198.51.100.0/24"]
            F:4: unknown key `allow` in [[service]]: write `from`, such as from = ["198.51.100.0/24"]
        form = ["any"]
            F:4: unknown key `form` in [[service]]: did you mean `from`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        cidrs = ["198.51.100.0/24"]
            F:4: unknown key `cidrs` in [[service]]: write `from`, such as from = ["198.51.100.0/24"]
        factor = 20
            F:4: unknown key `factor` in [[service]]: it belongs to a [[source]]: write it below that line
        adress = "203.0.113.5"
            F:4: unknown key `adress` in [[service]]: did you mean `address`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        listen = "203.0.113.5"
            F:4: unknown key `listen` in [[service]]: write `address`, such as address = "203.0.113.5"
        protocol = "tcp"
            F:4: unknown key `protocol` in [[service]]: write `ports`, such as ports = ["tcp/80"]
        comment = "x"
            F:4: unknown key `comment` in [[service]]: the keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        [service.total]
        |per = { ipv4 = 24 }
            F:5: unknown key `per` in [service.total]: the keys there are `packets`, `bytes` and `connections`
        [service.limit]
        |packets = "2k/s"
        |from = ["any"]
            F:6: unknown key `from` in [service.limit]: `from` belongs to the [[service]]: write it above the line [service.limit], or it is read as a key of [service.limit]
        [service.limit]
        |packets = "2k/s"
        |mode = "enforce"
            F:6: unknown key `mode` in [service.limit]: `mode` belongs to the [[service]]: write it above the line [service.limit], or it is read as a key of [service.limit]
        address.name = "203.0.113.5"
            F:4: `address` is a text: write address = "203.0.113.5"
        expire = 2027-01-31T00:00:00Z
            F:4: unknown key `expire` in [[source]]: did you mean `expires`? The keys there are `name`, `cidrs`, `factor`, `exempt`, `deny`, `owner`, `reason` and `expires`
        until = 2027-01-31T00:00:00Z
            F:4: unknown key `until` in [[source]]: write `expires`, such as expires = 2027-01-31T00:00:00Z
        comment = "x"
            F:4: unknown key `comment` in [[source]]: write `reason`, such as reason = "head office NAT"
        cidr = "198.51.100.0/24"
            F:4: unknown key `cidr` in [[source]]: did you mean `cidrs`? The keys there are `name`, `cidrs`, `factor`, `exempt`, `deny`, `owner`, `reason` and `expires`
        mode = "enforce"
            F:4: `mode` belongs at the top of the file, before the first section: below [[source]] it is read as a key of [[source]]
        ports = ["tcp/80"]
            F:4: unknown key `ports` in [[source]]: it belongs to a [[service]]: write it below that line
        allow = true
            F:4: unknown key `allow` in [[source]]: write `exempt`, such as exempt = true
        excempt = true
            F:4: unknown key `excempt` in [[source]]: did you mean `exempt`? The keys there are `name`, `cidrs`, `factor`, `exempt`, `deny`, `owner`, `reason` and `expires`
        "#);
}

#[test]
fn a_value_of_the_wrong_kind_is_answered_with_the_line_to_write() {
    let service = "[[service]]\nname = \"web\"\n";
    let listed = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";
    let source = "[[source]]\nname = \"office\"\n";
    let named = "[[source]]\nname = \"office\"\ncidrs = [\"198.51.100.0/24\"]\n";
    let all = [
        answers(
            "",
            &[
                "mode = \"enforced\"",
                "mode = \"Enforce\"",
                "mode = \"monitor\"",
                "mode = \"on\"",
                "mode = true",
                "mode = false",
                "mode = [\"enforce\"]",
                "mode = \"x\"",
                "scope = \"hosts\"",
                "scope = \"docker\"",
                "scope = \"x\"",
                "on_exit = \"leave\"",
                "on_exit = \"detatch\"",
                "interfaces = \"eth0\"",
                "interfaces = \"eth0, eth1\"",
                "interfaces = [0]",
                "cells = \"524288\"",
                "cells = \"1M\"",
                "cells = 1.5",
                "cells = 1000",
                "docker = false",
                "docker = \"/run/docker.sock\"",
                "docker.socket = false",
                "docker.socket = \"unix:///var/run/docker.sock\"",
                "docker.socket = \"tcp://127.0.0.1:2375\"",
                "docker.labels = true",
                "docker.labels = \"narow\"",
                "web = \"127.0.0.1:9469\"",
                "web = 9469",
                "web.listen = 9469",
                "web.listen = \":9469\"",
                "web.listen = \"localhost:9469\"",
                "web.listen = \"http://127.0.0.1:9469/\"",
                "web.listen = \"127.0.0.1\"",
                "web.listen = \"example.org:9469\"",
                "web.listen = [\"127.0.0.1:9469\"]",
                "[[web]]\nlisten = \"127.0.0.1:9469\"",
                "limits = \"5k/s\"",
                "limits = 5000",
                "limits.packets = 5000",
                "limits.packets = \"5000\"",
                "limits.packets = \"5k\"",
                "limits.packets = \"100pps\"",
                "limits.packets = \"100 per second\"",
                "limits.packets = true",
                "limits.packets = [\"5k/s\"]",
                "limits.bytes = 5000",
                "limits.bytes = \"20M/s\"",
                "limits.bytes = \"20MB\"",
                "limits.bytes = \"20Mbit/s\"",
                "limits.bytes = { rate = 20, burst = \"40MB\" }",
                "limits.packets = { rate = 100 }",
                "limits.packets = { burst = 200 }",
                "limits.packets = { rate = \"100/s\", burst = true }",
                "limits.packets = { rate = \"100/s\", burst = \"many\" }",
                "limits.per = 24",
                "limits.per = { ipv4 = \"24\" }",
                "limits.per = { ipv4 = 33 }",
                "service = \"web\"",
                "[service]\nname = \"web\"\nports = [\"tcp/80\"]",
                "[service.limit]\npackets = \"2k/s\"",
                "[service.web]\nports = [\"tcp/80\"]",
                "[source]\nname = \"office\"",
                "[[service]]",
                "[[service]]\nname = \"web\"",
                "[[service]]\nports = [\"tcp/80\"]",
                "[[source]]\nname = \"office\"",
            ],
        ),
        answers(
            service,
            &[
                "ports = [80]",
                "ports = 80",
                "ports = \"80\"",
                "ports = \"tcp/80, udp/443\"",
                "ports = [\"80\"]",
                "ports = [\"80/tcp\"]",
                "ports = [\"443/udp\"]",
                "ports = [\"TCP/80\"]",
                "ports = [\"tcp:80\"]",
                "ports = [\"tcp 80\"]",
                "ports = [\"8000:80\"]",
                "ports = [\"8000:8010/tcp\"]",
                "ports = [\"8000-8010\"]",
                "ports = [\"tcp/8000:8010\"]",
                "ports = [\"127.0.0.1:8000\"]",
                "ports = [\"tcp/80,443\"]",
                "ports = [\"tcp/80, udp/443\"]",
                "ports = [\"http\", \"https\"]",
                "ports = [\"tcp/https\"]",
                "ports = [\"any\"]",
                "ports = [\"ping\"]",
                "ports = [\"tcp/90-80\"]",
                "ports = [\"tcp/70000\"]",
                "ports = [\"tcp\"]",
                "ports = [[\"tcp/80\"]]",
                "ports = { tcp = 80 }",
                "ports = []",
                "port = 80",
                "port = \"tcp/80\"",
            ],
        ),
        answers(
            listed,
            &[
                "from = \"any\"",
                "from = \"198.51.100.0/24\"",
                "from = []",
                "from = [\"all\"]",
                "from = [\"*\"]",
                "from = [\"ofice\"]",
                "from = [\"ofice\"]\n[[source]]\nname = \"office\"\ncidrs = [\"198.51.100.0/24\"]",
                "from = [\"vpn\"]\n[[source]]\nname = \"office\"\ncidrs = [\"198.51.100.0/24\"]",
                "from = [\"198.51.100.7/24\"]",
                "from = [\"198.51.100.0/33\"]",
                "from = [\"198.51.100.0/255.255.255.0\"]",
                "from = [\"198.51.100.1-198.51.100.9\"]",
                "from = [\"198.51.100\"]",
                "from = [\"198.51.100.7:443\"]",
                "from = [\"example.org\"]",
                "from = [198]",
                "address = [\"203.0.113.5\"]",
                "address = \"203.0.113.5/24\"",
                "address = \"203.0.113.5:80\"",
                "address = \"0.0.0.0\"",
                "address = \"eth0\"",
                "mode = \"enfroce\"",
                "limit = \"100/s\"",
                "limit = 100",
                "total = 100",
                "[[service.limit]]\npackets = \"2k/s\"",
            ],
        ),
        answers(
            source,
            &[
                "cidrs = \"198.51.100.0/24\"",
                "cidrs = [\"198.51.100.0/24, 203.0.113.0/24\"]",
                "cidrs = [\"office\"]",
                "cidrs = []",
            ],
        ),
        answers(
            named,
            &[
                "factor = \"20\"",
                "factor = 2.5",
                "factor = 0",
                "exempt = \"yes\"",
                "exempt = 1",
                "deny = \"true\"",
                "owner = 7",
                "owner = [\"ana\"]",
                "expires = \"2027-01-31T00:00:00Z\"",
                "expires = \"2027-01-31\"",
                "expires = 2027-01-31",
                "expires = 2027-01-31 12:00:00",
                "expires = \"never\"",
                "expires = \"30d\"",
                "expires = 30",
            ],
        ),
        answers(
            "",
            &[
                "[[service]]\nname = \"My web!\"\nports = [\"tcp/80\"]",
                "[[service]]\nname = 80",
            ],
        ),
    ];
    let all = all.concat();
    assert_plain(&all);
    insta::assert_snapshot!(all, @r#"
        mode = "enforced"
            F:1: mode = "enforced" is not valid: did you mean "enforce"? The values are "off", "observe" and "enforce"
        mode = "Enforce"
            F:1: mode = "Enforce" is not valid: did you mean "enforce"? The values are "off", "observe" and "enforce"
        mode = "monitor"
            F:1: mode = "monitor" is not valid: did you mean "observe"? The values are "off", "observe" and "enforce"
        mode = "on"
            F:1: mode = "on" is not valid: did you mean "enforce"? The values are "off", "observe" and "enforce"
        mode = true
            F:1: mode = true is not valid: write "off", "observe" or "enforce"
        mode = false
            F:1: mode = false is not valid: write "off", "observe" or "enforce"
        mode = ["enforce"]
            F:1: `mode` takes one text: write "off", "observe" or "enforce"
        mode = "x"
            F:1: mode = "x" is not valid: write "off", "observe" or "enforce"
        scope = "hosts"
            F:1: scope = "hosts" is not valid: did you mean "host"? The values are "containers" and "host"
        scope = "docker"
            F:1: scope = "docker" is not valid: did you mean "containers"? The values are "containers" and "host"
        scope = "x"
            F:1: scope = "x" is not valid: write "containers" or "host"
        on_exit = "leave"
            F:1: on_exit = "leave" is not valid: did you mean "keep"? The values are "keep" and "detach"
        on_exit = "detatch"
            F:1: on_exit = "detatch" is not valid: did you mean "detach"? The values are "keep" and "detach"
        interfaces = "eth0"
            F:1: `interfaces` is a list: write interfaces = ["eth0"]
        interfaces = "eth0, eth1"
            F:1: `interfaces` is a list: write interfaces = ["eth0", "eth1"]
        interfaces = [0]
            F:1: 0 in `interfaces` needs quotes: write "0"
        cells = "524288"
            F:1: cells = "524288" is a text: write the number without quotes, cells = 524288
        cells = "1M"
            F:1: `cells` is a whole number: write cells = 524288
        cells = 1.5
            F:1: cells = 1.5 is not a whole number: write one, such as cells = 524288
        cells = 1000
            F:1: cells = 1000 is not valid: write a power of two from 131072 to 67108864, such as 131072
        docker = false
            F:1: docker = false is not valid: write docker.socket = "" for no Docker
        docker = "/run/docker.sock"
            F:1: `docker` is a section: write docker.socket = "/run/docker.sock"
        docker.socket = false
            F:1: docker.socket = false is not a path: write docker.socket = "" for no Docker
        docker.socket = "unix:///var/run/docker.sock"
            F:1: docker.socket = "unix:///var/run/docker.sock" is a URL: write the path alone, "/var/run/docker.sock"
        docker.socket = "tcp://127.0.0.1:2375"
            F:1: docker.socket = "tcp://127.0.0.1:2375" is not an absolute path: write one such as "/var/run/docker.sock", or "" for no Docker
        docker.labels = true
            F:1: docker.labels = true is not valid: write "narrow", "off" or "full"
        docker.labels = "narow"
            F:1: docker.labels = "narow" is not valid: did you mean "narrow"? The values are "narrow", "off" and "full"
        web = "127.0.0.1:9469"
            F:1: `web` is a section: write web.listen = "127.0.0.1:9469"
        web = 9469
            F:1: `web` is a section: write web.listen = "127.0.0.1:9469"
        web.listen = 9469
            F:1: web.listen = 9469 has no address: write web.listen = "127.0.0.1:9469"
        web.listen = ":9469"
            F:1: web.listen = ":9469" is not an address and port: write one such as "127.0.0.1:9469", or leave the key out to serve no page
        web.listen = "localhost:9469"
            F:1: web.listen = "localhost:9469" is not an address and port: write one such as "127.0.0.1:9469", or leave the key out to serve no page
        web.listen = "http://127.0.0.1:9469/"
            F:1: web.listen = "http://127.0.0.1:9469/" is not an address and port: write one such as "127.0.0.1:9469", or leave the key out to serve no page
        web.listen = "127.0.0.1"
            F:1: web.listen = "127.0.0.1" is not an address and port: write one such as "127.0.0.1:9469", or leave the key out to serve no page
        web.listen = "example.org:9469"
            F:1: web.listen = "example.org:9469" is not an address and port: write one such as "127.0.0.1:9469", or leave the key out to serve no page
        web.listen = ["127.0.0.1:9469"]
            F:1: `web.listen` takes one value, not a list: write web.listen = "127.0.0.1:9469"
        [[web]]
        |listen = "127.0.0.1:9469"
            F:1: [[web]] stands once: write one bracket, [web]
        limits = "5k/s"
            F:1: `limits` is a section of budgets: write limits.packets = "5k/s", limits.connections or limits.bytes
        limits = 5000
            F:1: `limits` is a section of budgets: write limits.packets = "5000/s", limits.connections or limits.bytes
        limits.packets = 5000
            F:1: packets = 5000 has no period: write packets = "5000/s", or /min or /h
        limits.packets = "5000"
            F:1: "5000" is not a rate, it has no period: write "5000/s"
        limits.packets = "5k"
            F:1: "5k" is not a rate, it has no period: write "5k/s"
        limits.packets = "100pps"
            F:1: "100pps" is not a rate, it has no period: write "100/s"
        limits.packets = "100 per second"
            F:1: "100 per second" is not a rate: write a number, optionally k, M or G, and /s, /min or /h, such as "2k/s"
        limits.packets = true
            F:1: `packets` is a rate: write packets = "2k/s", or packets = { rate = "2k/s", burst = 4000 }
        limits.packets = ["5k/s"]
            F:1: `packets` is a rate: write packets = "2k/s", or packets = { rate = "2k/s", burst = 4000 }
        limits.bytes = 5000
            F:1: bytes = 5000 has no period: write bytes = "5000B/s", or /min or /h
        limits.bytes = "20M/s"
            F:1: "20M/s" is not a rate, it has no unit: write "20MB/s"
        limits.bytes = "20MB"
            F:1: "20MB" is not a rate, it has no period: write "20MB/s"
        limits.bytes = "20Mbit/s"
            F:1: "20Mbit/s" uses bits or binary multiples: write "2500kB/s", in bytes
        limits.bytes = { rate = 20, burst = "40MB" }
            F:1: rate = 20 has no period: write rate = "20B/s", or /min or /h
        limits.packets = { rate = 100 }
            F:1: rate = 100 has no period: write rate = "100/s", or /min or /h
        limits.packets = { burst = 200 }
            F:1: [limits.packets] has no `rate`: write one, such as rate = "2k/s"
        limits.packets = { rate = "100/s", burst = true }
            F:1: `burst` is not valid: write burst = 4000
        limits.packets = { rate = "100/s", burst = "many" }
            F:1: burst = "many" is not valid: write a count such as 200 or "4k"
        limits.per = 24
            F:1: `per` has a number of bits for each version of IP: write per = { ipv4 = 24 }
        limits.per = { ipv4 = "24" }
            F:1: ipv4 = "24" is a text: write the number without quotes, ipv4 = 24
        limits.per = { ipv4 = 33 }
            F:1: 33 is not a prefix length: write a number of bits from 1 to 32
        service = "web"
            F:1: `service` is a section: write [[service]], and its keys below it
        [service]
        |name = "web"
        |ports = ["tcp/80"]
            F:1: [service] has one bracket: write two, [[service]], for each service
        [service.limit]
        |packets = "2k/s"
            F:1: [service.limit] stands before the first [[service]]: write [[service]] with its keys above it
        [service.web]
        |ports = ["tcp/80"]
            F:1: [service.web] is not how a service gets its name: write [[service]], and name = "web" below it
        [source]
        |name = "office"
            F:1: [source] has one bracket: write two, [[source]], for each source
        [[service]]
            F:1: [[service]] has no `name`: write one, such as name = "proxy"
        [[service]]
        |name = "web"
            F:1: [[service]] has no `ports`: write one, such as ports = ["tcp/80"]
        [[service]]
        |ports = ["tcp/80"]
            F:1: [[service]] has no `name`: write one, such as name = "proxy"
        [[source]]
        |name = "office"
            F:1: [[source]] has no `cidrs`: write one, such as cidrs = ["198.51.100.0/24"]
        ports = [80]
            F:3: `ports` has the number 80 without a protocol: write "tcp/80", or "udp/80"
        ports = 80
            F:3: `ports` is a list of ports with their protocols: write ports = ["tcp/80"]
        ports = "80"
            F:3: `ports` is a list: write ports = ["tcp/80"]
        ports = "tcp/80, udp/443"
            F:3: `ports` is a list: write ports = ["tcp/80", "udp/443"]
        ports = ["80"]
            F:3: "80" is not a port or protocol: write "tcp/80"
        ports = ["80/tcp"]
            F:3: "80/tcp" is not a port or protocol: write "tcp/80"
        ports = ["443/udp"]
            F:3: "443/udp" is not a port or protocol: write "udp/443"
        ports = ["TCP/80"]
            F:3: "TCP/80" is not a port or protocol: write "tcp/80"
        ports = ["tcp:80"]
            F:3: "tcp:80" is not a port or protocol: write "tcp/80"
        ports = ["tcp 80"]
            F:3: "tcp 80" is not a port or protocol: write "tcp/80"
        ports = ["8000:80"]
            F:3: "8000:80" is not a port or protocol: write "tcp/8000"
        ports = ["8000:8010/tcp"]
            F:3: "8000:8010/tcp" is not a port or protocol: write "tcp/8000-8010"
        ports = ["8000-8010"]
            F:3: "8000-8010" is not a port or protocol: write "tcp/8000-8010"
        ports = ["tcp/8000:8010"]
            F:3: "tcp/8000:8010" is not a port or protocol: write "tcp/8000-8010"
        ports = ["127.0.0.1:8000"]
            F:3: "127.0.0.1:8000" is not a port: write "tcp/8000", and the address into `address` of the service
        ports = ["tcp/80,443"]
            F:3: "tcp/80,443" is more than one port: write each in its own quotes, "tcp/80", "tcp/443"
        ports = ["tcp/80, udp/443"]
            F:3: "tcp/80, udp/443" is more than one port: write each in its own quotes, "tcp/80", "udp/443"
        ports = ["http", "https"]
            F:3: "http" is not a port or protocol: write "tcp/80"
        ports = ["tcp/https"]
            F:3: "tcp/https" is not a port or protocol: write "tcp/443"
        ports = ["any"]
            F:3: "any" is not a port or protocol: write "tcp/1-65535"
        ports = ["ping"]
            F:3: "ping" is not a port or protocol: write "icmp"
        ports = ["tcp/90-80"]
            F:3: "tcp/90-80" is not a range of ports: write the smaller port first, 80-90
        ports = ["tcp/70000"]
            F:3: there is no port 70000: ports are numbers from 1 to 65535
        ports = ["tcp"]
            F:3: "tcp" is not a port or protocol: write "tcp/80", "udp/443", "tcp/8000-8010", "icmp", "icmpv6", "esp", "gre" or, for any other protocol, its number, such as "proto/112"
        ports = [["tcp/80"]]
            F:3: `ports` has a list in its list: write ports = ["tcp/80"]
        ports = { tcp = 80 }
            F:3: `ports` is a list: write ports = ["tcp/80"]
        ports = []
            F:3: `ports` is empty: write ports, such as ["tcp/80"]
        port = 80
            F:3: unknown key `port` in [[service]]: did you mean `ports`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        port = "tcp/80"
            F:3: unknown key `port` in [[service]]: did you mean `ports`? The keys there are `name`, `ports`, `address`, `from`, `mode`, `limit`, `total` and `flood`
        from = "any"
            F:4: `from` is a list: write from = ["any"]
        from = "198.51.100.0/24"
            F:4: `from` is a list: write from = ["198.51.100.0/24"]
        from = []
            F:4: `from` is empty, so no source could reach this service: write ["any"] or CIDRs, or leave the service out to close its ports
        from = ["all"]
            F:4: "all" is neither a CIDR nor the name of a source: did you mean "any"?
        from = ["*"]
            F:4: "*" is neither a CIDR nor the name of a source: did you mean "any"?
        from = ["ofice"]
            F:4: "ofice" is neither a CIDR nor the name of a source: write "any" or a CIDR such as "198.51.100.0/24", or add a [[source]] with this name
        from = ["ofice"]
        |[[source]]
        |name = "office"
        |cidrs = ["198.51.100.0/24"]
            F:4: "ofice" is neither a CIDR nor the name of a source: did you mean "office"?
        from = ["vpn"]
        |[[source]]
        |name = "office"
        |cidrs = ["198.51.100.0/24"]
            F:4: "vpn" is neither a CIDR nor the name of a source: write "any", a CIDR such as "198.51.100.0/24", or the name of a [[source]], office
        from = ["198.51.100.7/24"]
            F:4: "198.51.100.7/24" has bits set after its prefix length: write "198.51.100.0/24" for the network, or "198.51.100.7" for the single address
        from = ["198.51.100.0/33"]
            F:4: "198.51.100.0/33" is not an address or a CIDR: "33" is not a prefix length, write one from 0 to 32
        from = ["198.51.100.0/255.255.255.0"]
            F:4: "198.51.100.0/255.255.255.0" is not an address or a CIDR: write the length of the prefix instead of a netmask, "198.51.100.0/24"
        from = ["198.51.100.1-198.51.100.9"]
            F:4: "198.51.100.1-198.51.100.9" is not an address or a CIDR: write a range as one or more CIDRs, such as "198.51.100.0/24"
        from = ["198.51.100"]
            F:4: "198.51.100" is not an address or a CIDR: write one such as "198.51.100.7", "198.51.100.0/24" or "2001:db8::/32"
        from = ["198.51.100.7:443"]
            F:4: "198.51.100.7:443" is not an address or a CIDR: a source has no port, write "198.51.100.7"
        from = ["example.org"]
            F:4: "example.org" is not an address or a CIDR: names are not looked up, write the address of example.org
        from = [198]
            F:4: 198 in `from` needs quotes: write "198"
        address = ["203.0.113.5"]
            F:4: `address` takes one value, not a list: write address = "203.0.113.5"
        address = "203.0.113.5/24"
            F:4: address = "203.0.113.5/24" cannot be an address of this host: write one such as "203.0.113.5", or leave `address` out for all of them
        address = "203.0.113.5:80"
            F:4: address = "203.0.113.5:80" cannot be an address of this host: write one such as "203.0.113.5", or leave `address` out for all of them
        address = "0.0.0.0"
            F:4: address = "0.0.0.0" cannot be an address of this host: write one such as "203.0.113.5", or leave `address` out for all of them
        address = "eth0"
            F:4: address = "eth0" cannot be an address of this host: write one such as "203.0.113.5", or leave `address` out for all of them
        mode = "enfroce"
            F:4: mode = "enfroce" is not valid: did you mean "enforce"? The values are "off", "observe" and "enforce"
        limit = "100/s"
            F:4: `limit` is a section of budgets: write limit.packets = "100/s", limit.connections or limit.bytes
        limit = 100
            F:4: `limit` is a section of budgets: write limit.packets = "100/s", limit.connections or limit.bytes
        total = 100
            F:4: `total` is a section of budgets: write total.packets = "100/s", total.connections or total.bytes
        [[service.limit]]
        |packets = "2k/s"
            F:4: [[service.limit]] stands once: write one bracket, [service.limit]
        cidrs = "198.51.100.0/24"
            F:3: `cidrs` is a list: write cidrs = ["198.51.100.0/24"]
        cidrs = ["198.51.100.0/24, 203.0.113.0/24"]
            F:3: "198.51.100.0/24, 203.0.113.0/24" is not an address or a CIDR: write each in its own quotes, "198.51.100.0/24", "203.0.113.0/24"
        cidrs = ["office"]
            F:3: "office" is not an address or a CIDR: write one such as "198.51.100.7", "198.51.100.0/24" or "2001:db8::/32"
        cidrs = []
            F:3: `cidrs` is empty: write prefixes, such as ["198.51.100.0/24"]
        factor = "20"
            F:4: factor = "20" is a text: write the number without quotes, factor = 20
        factor = 2.5
            F:4: factor = 2.5 is not a whole number: write one, such as factor = 20
        factor = 0
            F:4: factor = 0 is not valid: write how many times the usual budgets the source gets, from 1 to 1000000
        exempt = "yes"
            F:4: `exempt` is true or false: write exempt = true, without quotes
        exempt = 1
            F:4: `exempt` is true or false: write exempt = true, without quotes
        deny = "true"
            F:4: `deny` is true or false: write deny = true, without quotes
        owner = 7
            F:4: owner = 7 needs quotes: write owner = "7"
        owner = ["ana"]
            F:4: `owner` takes one value, not a list: write owner = "ana"
        expires = "2027-01-31T00:00:00Z"
            F:4: expires = "2027-01-31T00:00:00Z" is a text: write date and time without quotes, expires = 2027-01-31T00:00:00Z
        expires = "2027-01-31"
            F:4: `expires` is a date and time without quotes: write expires = 2027-01-31T00:00:00Z
        expires = 2027-01-31
            F:4: expires = 2027-01-31 is not complete: write date, time and offset, such as 2027-01-31T00:00:00Z
        expires = 2027-01-31 12:00:00
            F:4: expires = 2027-01-31T12:00:00 is not complete: write date, time and offset, such as 2027-01-31T12:00:00Z
        expires = "never"
            F:4: expires = "never" is not a date: leave the key out for no end
        expires = "30d"
            F:4: `expires` is a date and time without quotes: write expires = 2027-01-31T00:00:00Z
        expires = 30
            F:4: `expires` is a date and time without quotes: write expires = 2027-01-31T00:00:00Z
        [[service]]
        |name = "My web!"
        |ports = ["tcp/80"]
            F:2: "My web!" cannot be a name: use 1 to 64 letters, digits, '-', '_' and '.', such as "my-web"
        [[service]]
        |name = 80
            F:2: name = 80 needs quotes: write name = "80"
        "#);
}

#[test]
fn a_line_that_is_not_toml_is_answered_with_the_line_to_write() {
    let service = "[[service]]\nname = \"web\"\n";
    let all = [
        answers(
            "",
            &[
                "mode = enforce",
                "mode = “enforce”",
                "mode = `enforce`",
                "mode =",
                "mode",
                "mode \"enforce\"",
                "mode enforce",
                "mode: \"enforce\"",
                "mode: enforce",
                "mode == \"enforce\"",
                "= \"enforce\"",
                "mode = \"enforce",
                "mode = 'enforce",
                "mode = \"enforce\" scope = \"host\"",
                "mode = \"enforce\";",
                "mode = \"observe\"\nmode = \"enforce\"",
                "export mode=\"enforce\"",
                "// a comment",
                "; a comment",
                "services:\n  - name: web",
                "{ \"mode\": \"enforce\" }",
                "cells = 0800",
                "limits.packets = 5k/s",
                "docker.socket = C:\\docker",
                "docker.socket = \"C:\\docker\"",
                "[docker\nsocket = \"\"",
                "docker]\nsocket = \"\"",
                "[[service]\nname = \"web\"",
                "[service]]\nname = \"web\"",
                "[]",
                "[web]\nlisten = \"127.0.0.1:9469\"\n[web]\nlisten = \"127.0.0.1:9470\"",
                "docker.socket = \"\"\n[docker]\nlabels = \"off\"",
                "[service.limit]\npackets = \"2k/s\"\n[[service]]\nname = \"web\"",
            ],
        ),
        answers(
            service,
            &[
                "ports = [tcp/80]",
                "ports = [tcp/80, tcp/443]",
                "ports = [http]",
                "ports = tcp/80",
                "ports = [\"tcp/80\" \"tcp/443\"]",
                "ports = [\"tcp/80\",, \"tcp/443\"]",
                "ports = [\"tcp/80\"\nfrom = [\"any\"]",
                "ports = [\"tcp/80\"",
                "ports = [“tcp/80”]",
                "limit = { packets = \"2k/s\"",
                "limit = { packets = 2k/s }",
                "name = \"other\"",
                "mode = True",
            ],
        ),
        answers(
            "[[source]]\nname = \"office\"\n",
            &["expires = 2027-1-31", "exempt = yes", "exempt = TRUE"],
        ),
    ];
    let all = all.concat();
    assert_plain(&all);
    insta::assert_snapshot!(all, @r#"
        mode = enforce
            F:1: enforce needs quotes: write mode = "enforce"
        mode = “enforce”
            F:1: “enforce” is not in straight quotes: write "enforce"
        mode = `enforce`
            F:1: `enforce` is not in straight quotes: write "enforce"
        mode =
            F:1: `mode` has no value: write one after `=`
        mode
            F:1: "mode" has no value: write a key, `=` and its value
        mode "enforce"
            F:1: `mode` has no `=`: write mode = "enforce"
        mode enforce
            F:1: `mode` has no `=`: write mode = "enforce"
        mode: "enforce"
            F:1: a key and its value have `=` between them: write mode = "enforce"
        mode: enforce
            F:1: a key and its value have `=` between them: write mode = "enforce"
        mode == "enforce"
            F:1: there are two signs `=`: write one
        = "enforce"
            F:1: there is no key before `=`: write one, such as mode = "observe"
        mode = "enforce
            F:1: a quote is missing: write the text between two quotes, in one line
        mode = 'enforce
            F:1: a quote is missing: write the text between two quotes, in one line
        mode = "enforce" scope = "host"
            F:1: this line goes on after its value: write each key in a line of its own
        mode = "enforce";
            F:1: this line goes on after its value: write each key in a line of its own
        mode = "observe"
        |mode = "enforce"
            F:2: mode is already in line 1: write each key once
        export mode="enforce"
            F:1: "export mode=\"enforce\"" has no value: write a key, `=` and its value
        // a comment
            F:1: a comment begins with #, not with //
        ; a comment
            F:1: a comment begins with #, not with ;
        services:
        |  - name: web
            F:1: `services:` is YAML, and the policy is written in TOML: a section begins with [[service]], and its keys stand below it, such as name = "web"
        { "mode": "enforce" }
            F:1: the policy is written in TOML, not in JSON: write lines such as mode = "observe"
        cells = 0800
            F:1: a number has no 0 before it: leave it out
        limits.packets = 5k/s
            F:1: 5k/s needs quotes: write limits.packets = "5k/s"
        docker.socket = C:\docker
            F:1: C:\docker needs quotes: write docker.socket = "C:\\docker"
        docker.socket = "C:\docker"
            F:1: a \ in quotes begins a special character: write \\, or put the text between single quotes
        [docker
        |socket = ""
            F:1: a section stands in brackets that are closed: write [docker]
        docker]
        |socket = ""
            F:1: a section stands in brackets that are closed: write [docker]
        [[service]
        |name = "web"
            F:1: a section stands in brackets that are closed: write [[service]]
        [service]]
        |name = "web"
            F:1: a section stands in brackets that are closed: write [[service]]
        []
            F:1: the brackets are empty: write the name of a section, such as [[service]]
        [web]
        |listen = "127.0.0.1:9469"
        |[web]
        |listen = "127.0.0.1:9470"
            F:3: web is already in line 1: write each key once
        docker.socket = ""
        |[docker]
        |labels = "off"
            F:2: docker is already in line 1: write each key once
        [service.limit]
        |packets = "2k/s"
        |[[service]]
        |name = "web"
            F:3: the section in line 1 stands before the first [[service]]: move it below [[service]] and its keys
        ports = [tcp/80]
            F:3: tcp/80 needs quotes: write "tcp/80"
        ports = [tcp/80, tcp/443]
            F:3: tcp/80 needs quotes: write "tcp/80"
        ports = [http]
            F:3: http needs quotes: write "http"
        ports = tcp/80
            F:3: `ports` is a list of texts in quotes: write ports = ["tcp/80"]
        ports = ["tcp/80" "tcp/443"]
            F:3: a comma is missing between two elements of the list: write one
        ports = ["tcp/80",, "tcp/443"]
            F:3: a comma follows another: write one
        ports = ["tcp/80"
        |from = ["any"]
            F:4: the list above this line is not closed: write ] at its end
        ports = ["tcp/80"
            F:3: the list is not closed: write ] at its end
        ports = [“tcp/80”]
            F:3: “tcp/80” is not in straight quotes: write "tcp/80"
        limit = { packets = "2k/s"
            F:3: the braces are not closed: write } at the end of the value
        limit = { packets = 2k/s }
            F:3: 2k/s needs quotes: write "2k/s"
        name = "other"
            F:3: name is already in line 2: write each key once
        mode = True
            F:3: True needs quotes: write mode = "True"
        expires = 2027-1-31
            F:3: this is not a date and time: write one such as 2027-01-31T00:00:00Z
        exempt = yes
            F:3: `exempt` is true or false, in small letters: write exempt = true
        exempt = TRUE
            F:3: `exempt` is true or false, in small letters: write exempt = true
        "#);
}

#[test]
fn a_policy_that_is_broken_anywhere_is_answered_in_one_plain_line() {
    const WHOLE: &str = include_str!("../../../examples/two-uplinks.toml");
    const PIECES: [&str; 16] = [
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        "=",
        ",",
        "\n",
        "80",
        "true",
        "x",
        "é",
        "\\",
        "2027-01-31",
        "#",
    ];
    let clock = KernelTick { tick_ns: 4_000_000 };
    let mut random = fastrand::Rng::with_seed(8);
    let places: Vec<usize> = WHOLE.char_indices().map(|(place, _)| place).collect();
    let mut refusals = 0;
    for _ in 0..2_000 {
        let start = places[random.usize(..places.len())];
        let rest = &WHOLE[start..];
        let length = random.usize(..12);
        let end = rest
            .char_indices()
            .nth(length)
            .map_or(WHOLE.len(), |(end, _)| start + end);
        let piece = PIECES[random.usize(..PIECES.len())];
        let text = format!("{}{piece}{}", &WHOLE[..start], &WHOLE[end..]);
        if let Err(refused) = Policy::parse(&text, "F", clock) {
            let refused = refused.to_string();
            assert_eq!(refused.lines().count(), 1, "{refused}\n{text}");
            assert_plain(&refused);
            refusals += 1;
        }
    }
    assert!(refusals > 200, "{refusals}");
}
