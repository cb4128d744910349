//! Public bug reports about tools that read compose files, each with the expected ports.

/// A report, its files, and the published ports: `SERVICE ADDRESS PUBLISHED TARGET/PROTOCOL`, with `-` for a part that
/// is not written. `Err`: the files are refused.
pub struct Reported {
    pub by: &'static str,
    pub files: &'static [&'static str],
    pub ports: Result<&'static [&'static str], ()>,
}

pub const REPORTED: [Reported; 12] = [
    Reported {
        by: "docker/compose#8586, docker/cli#6223: an empty override drops one of TCP and UDP",
        files: &[
            "services: {web: {image: caddy, ports: ['443:443', '443:443/udp']}}",
            "services: {web: {environment: {A: b}}}",
        ],
        ports: Ok(&["web - 443 443/tcp", "web - 443 443/udp"]),
    },
    Reported {
        by: "docker/compose#11611: extends repeats the ports",
        files: &[
            "services: {base: {image: a, ports: ['8080:8080']}, web: {extends: base, ports: ['8080:8080']}}",
        ],
        ports: Ok(&["base - 8080 8080/tcp", "web - 8080 8080/tcp"]),
    },
    Reported {
        by: "LvcidPsyche/auto-browser#62: the override's address is one more, not one instead",
        files: &[
            "services: {web: {image: a, ports: ['127.0.0.1:8000:8000']}}",
            "services: {web: {ports: ['0.0.0.0:8000:8000']}}",
        ],
        ports: Ok(&["web 127.0.0.1 8000 8000/tcp", "web 0.0.0.0 8000 8000/tcp"]),
    },
    Reported {
        by: "docker/compose#12815: the long form takes what is no address",
        files: &[
            "services: {web: {image: a, ports: [{host_ip: notavalidip, target: 1, published: '1'}]}}",
        ],
        ports: Err(()),
    },
    Reported {
        by: "docker/compose#8293: 127:0.0.1 is taken for an address",
        files: &["services: {web: {image: a, ports: ['127:0.0.1:8000:80']}}"],
        ports: Err(()),
    },
    Reported {
        by: "oblien/openship#135: the long form's host_ip is lost",
        files: &[
            "services: {db: {image: a, ports: [{target: 5432, host_ip: 127.0.0.1, published: 5432}, {target: 80, host_ip: 127.0.0.1}]}}",
        ],
        ports: Ok(&["db 127.0.0.1 5432 5432/tcp", "db 127.0.0.1 - 80/tcp"]),
    },
    Reported {
        by: "containers/podlet#96, mickamy/tug#5, docker/compose#7001: IPv6 in brackets is refused",
        files: &[
            "services: {web: {image: a, ports: ['[fd7a:115c:a1e0:0:0:0:9f01:c080]:443:443/udp', '[::1]:8080:80']}}",
        ],
        ports: Ok(&[
            "web fd7a:115c:a1e0::9f01:c080 443 443/udp",
            "web ::1 8080 80/tcp",
        ]),
    },
    Reported {
        by: "compose-spec/compose-go#504, docker/compose#5613: the long form has ranges on the host alone",
        files: &["services: {web: {image: a, ports: [{target: '20-21', published: '20-21'}]}}"],
        ports: Err(()),
    },
    Reported {
        by: "docker/compose#12287: $} and $@ are characters",
        files: &["services: {web: {image: a, command: 'x $@ $- $1 $', ports: ['80:80']}}"],
        ports: Ok(&["web - 80 80/tcp"]),
    },
    Reported {
        by: "docker/compose#12287: ${@} is an error",
        files: &["services: {web: {image: a, command: '${@}', ports: ['80:80']}}"],
        ports: Err(()),
    },
    Reported {
        by: "Alfresco/acs-deployment#1350, docker/compose#2507, #4485: a regular expression ends with $",
        files: &[
            "services: {web: {image: a, labels: {rule: 'PathRegexp(`^/(wc)?/.*$`)', mounts: '^/(sys|proc)($|/)', key: 'B!g3taway$'}, ports: ['80:80']}}",
        ],
        ports: Ok(&["web - 80 80/tcp"]),
    },
    Reported {
        by: "docker/compose#3461: a port that two files have is published once",
        files: &[
            "services: {web: {image: a, ports: ['80:80', {target: 81, published: 81}]}}",
            "services: {web: {ports: ['80:80/tcp', '81:81']}}",
        ],
        ports: Ok(&["web - 80 80/tcp", "web - 81 81/tcp"]),
    },
];
