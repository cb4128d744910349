// Answers of an agent after a busy hour, in the place of those of the lab's young agent. The page and its headers are
// the real ones. `window.answers` may be changed by a test.
(() => {
  const SECOND = 1000, MINUTE = 60 * SECOND, INTERVAL = 10, POINTS = 360;
  const begun = Date.now(), text = (time) => new Date(time).toISOString();
  const ago = (minutes) => text(begun - minutes * MINUTE);
  // The same noise every time.
  let state = 7;
  const noise = () => (state = (state * 16807) % 2147483647) / 2147483647;
  const minuteOf = (index) => 60 - (index + 1) * INTERVAL / 60;
  const series = (service, reason, rate, rest = {}) => {
    const packets = Array.from({ length: POINTS }, (_, index) => Math.round(INTERVAL * rate(minuteOf(index))));
    return { service, verdict: "pass", reason, packets, bytes: packets.map((value) => value * 240), ...rest };
  };
  const drop = { verdict: "drop" }, would = { would: "drop" };
  const isFlood = (ago) => ago < 6.5 || (ago > 24 && ago < 31);
  const isEnforced = (ago) => ago < 41;
  const lines = [
    series("web", "allowed", (ago) => 236 + 60 * Math.sin(ago / 9) + 40 * noise()),
    series("dns", "allowed", () => 38 + 12 * noise()),
    series("ssh", "established", () => 4 + 3 * noise()),
    series(null, "reply", () => 21 + 9 * noise()),
    series(null, "control", () => .3),
    series(null, "closed_port", (ago) => !isEnforced(ago) ? 0 : isFlood(ago)
      ? 3600 + 700 * noise() : 6 + 5 * noise(), drop),
    series(null, "closed_port", (ago) => isEnforced(ago) ? 0 : 7 + 5 * noise(), would),
    series("web", "connection_limit", (ago) => !isEnforced(ago) ? 0 : isFlood(ago) ? 280 + 90 * noise() : 2 * noise(), drop),
    series("ssh", "connection_limit", (ago) => ago > 12 && ago < 20 ? 90 + 40 * noise() : 0, would),
  ];
  const ports = [["tcp/8000", .91], ["tcp/2375", .05], ["tcp/5432", .02]];
  const total = (values) => values.reduce((a, b) => a + b, 0);
  const counters = () => {
    const passed = (Date.now() - begun) / SECOND / INTERVAL;
    return lines.map(({ packets, bytes, ...line }) => {
      const last = packets[POINTS - 1];
      const sum = total(packets) + Math.round(last * passed);
      const found = line.reason === "closed_port" && line.verdict === "drop"
        ? { ports: ports.map(([port, share]) => ({ port, packets: Math.round(sum * share) })) } : {};
      return { interface: "eth0", ...line, packets: sum, bytes: sum * 240, ...found };
    });
  };
  const talker = (source, rate, share, rest) => () => {
    const packets = Math.round(16 * Math.floor(rate * (400 + (Date.now() - begun) / SECOND) / 16));
    return { interface: "eth0", source, packets, dropped: Math.round(packets * share / 16) * 16, bytes: packets * 80,
      ...rest };
  };
  const talkers = [
    talker("198.51.100.66", 3700, 1, { reason: "closed_port", port: "tcp/8000" }),
    talker("203.0.113.20", 508, .63, { name: "office", reason: "connection_limit", service: "web" }),
    talker("192.0.2.14", 84, 0, {}),
    talker("2001:db8:40::7", 61, 0, {}),
    talker("203.0.113.9", 22, 1, { reason: "closed_port", port: "tcp/2375" }),
    talker("192.0.2.200", 3, .2, { reason: "connection_limit", service: "ssh" }),
  ];
  const link = { attached: true, xdp_mode: "native", program_id: 41, generation: 3, trouble: null };
  const status = {
    version: "0.1.0", mode: "enforce", scope: "containers", enforcing: true, not_enforcing_because: [],
    agent: { running: true, pid: 812, last_seen: null, trouble: null },
    interfaces: [{ name: "eth0", ...link }, { name: "wg0", ...link, xdp_mode: "generic" }],
    policy: { path: "/etc/guard/guard.toml", sha256: "4f1c", loaded_at: ago(41.3), services: 3, stale: null },
    modes: [{ service: "ssh", mode: "observe", since: ago(22.4), by: "ana", process: 4711, claimed_by: null }],
    trial: null,
    docker: { socket: "/var/run/docker.sock", connected: true, error: null,
      published: ["tcp/8000", "tcp/5432", "tcp/2375"], warnings: [] },
    warnings: [], not_kept: null, since: ago(41.2), entries: 2, page: "http://127.0.0.1:9469/",
  };
  const times = Array.from({ length: POINTS }, (_, index) => text(begun - (POINTS - 1 - index) * INTERVAL * SECOND));
  const hour = {
    interval: INTERVAL, times, seconds: times.map(() => INTERVAL), series: lines,
    marks: [
      { at: ago(52.5), kind: "agent", text: "agent started, policy /etc/guard/guard.toml, mode observe" },
      { at: ago(41.2), kind: "policy", text: "policy /etc/guard/guard.toml loaded, mode enforce" },
      { at: ago(22.4), kind: "mode", text: "service ssh: mode observe, set by ana" },
      { at: ago(14.1), kind: "entry", text: "allow 203.0.113.20 at web added" },
    ],
    floods: [
      { begin: ago(31), end: ago(24), peak: 4640, service: null, reason: "closed_port" },
      { begin: ago(6.5), end: null, peak: 4652, service: null, reason: "closed_port" },
    ],
  };
  const owner = (kind, rest) => ({ kind, container: null, image: null, project: null, service: null,
    host_network: false, processes: [], pids: [], user: null, rewrite: null, ...rest });
  const decision = (fate, service, from) => ({ fate, addresses: [], service, line: 1, from, why: null, limits: [],
    enforced: true });
  const port = (protocol, number, level, whose, policy, rest = {}) => ({ protocol, port: number, last_port: number,
    addresses: ["0.0.0.0"], level, owner: whose, role: null, neighbours: null, policy, finding: false, danger: null,
    changes: [], ...rest });
  const exposure = { notes: [], endpoints: [
    port("tcp", 443, "world", owner("container", { container: "proxy", project: "shop", service: "caddy" }),
      [decision("open", "web", ["any"])]),
    port("tcp", 22, "world", owner("process", { processes: ["sshd"] }), [decision("open", "ssh", ["office"])]),
    port("udp", 53, "world", owner("unknown"), [decision("open", "dns", ["any"])]),
    port("tcp", 8000, "world", owner("container", { container: "app", project: "shop", service: "app" }),
      [decision("closed", null, [])]),
    port("tcp", 5432, "world", owner("container", { container: "db", project: "shop", service: "postgres" }),
      [decision("closed", null, [])], { danger: { service: "PostgreSQL" } }),
    port("tcp", 9469, "localhost", owner("process", { processes: ["guard"] }), []),
  ] };
  window.answers = {
    status: () => status, counters, talkers: () => talkers.map((one) => one()),
    history: () => ({ ...hour, now: text(Date.now()) }), exposure: () => exposure,
  };
  window.asked = [];
  window.fetch = async (resource) => {
    window.asked.push(String(resource));
    const answer = window.answers[String(resource).replace("v1/", "")];
    return new Response(JSON.stringify(answer()), { headers: { "content-type": "application/json" } });
  };
})();
