//! Services that are dangerous to expose, by the port that they listen on. To add a service, add its row to
//! [`DANGERS`].

use std::fmt;

use guard_common::layout::PortProtocol::{self, Tcp, Udp};
use serde::Serialize;

use crate::proxies::image_name;

use self::{
    Harm::{Breach, Leak},
    Login::{Asked, Open, Varies},
};

/// The port of a service that should not be reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Danger {
    pub port: u16,
    #[serde(skip)]
    pub protocol: PortProtocol,
    pub service: &'static str,
    pub login: Login,
    pub harm: Harm,
    /// What an intruder gets after the login, if there is one.
    pub gain: &'static str,
}

/// Whether the service asks for a login by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Login {
    /// It asks for a password or a key.
    Asked,
    /// It depends on the version and the configuration.
    Varies,
    /// It does not ask, unless it is configured to.
    Open,
}

/// The harm that an intruder can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Harm {
    /// The intruder learns about this host, or uses it to flood others.
    Leak,
    /// The intruder gets data, or runs commands.
    Breach,
}

impl Login {
    const fn asks(self) -> &'static str {
        match self {
            Self::Asked => "which only its own login protects",
            Self::Varies => "which asks for no login in some versions and configurations",
            Self::Open => "which asks for no login by default",
        }
    }
}

/// `11434 is the port of Ollama, which asks for no login by default. An intruder gets …`.
impl fmt::Display for Danger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            port,
            protocol: _,
            service,
            login,
            harm: _,
            gain,
        } = self;
        let asks = login.asks();
        write!(
            formatter,
            "{port} is the port of {service}, {asks}. An intruder gets {gain}"
        )
    }
}

const fn danger(
    port: u16,
    protocol: PortProtocol,
    login: Login,
    harm: Harm,
    service: &'static str,
    gain: &'static str,
) -> Danger {
    Danger {
        port,
        protocol,
        service,
        login,
        harm,
        gain,
    }
}

/// The danger of a port, if it is known.
pub fn danger_at(protocol: PortProtocol, port: u16) -> Option<&'static Danger> {
    DANGERS
        .iter()
        .find(|danger| danger.protocol == protocol && danger.port == port)
}

/// A panel: its images, and its port in their containers.
pub type Panel = (&'static [&'static str], Danger);

/// The known dangers of the ports in a container of this image. An image says more than a port.
pub fn panels_of(image: &str) -> impl Iterator<Item = &'static Danger> {
    let panels = PANELS
        .iter()
        .filter(move |(images, _)| names(images, image));
    panels.map(|(_, danger)| danger)
}

/// Whether an image with its registry and tag is one of these.
fn names(images: &[&str], image: &str) -> bool {
    let name = image_name(image);
    images.iter().any(|known| match known.contains('/') {
        true => image.contains(known),
        false => name == *known,
    })
}

/// Container ports of services that are not in [`DANGERS`], mostly web applications. Such a port is not dangerous,
/// whatever its number on the host.
#[rustfmt::skip]
pub const ORDINARY: [u16; 36] = [
    21, 22, 25, 53, 80, 81, 110, 143, 443, 465, 587, 853, 993, 995,
    1337, 3000, 3001, 4000, 4200, 5000, 5001, 5173, 8000, 8001, 8008, 8080, 8081, 8082, 8090, 8096, 8123,
    8443, 9000, 9001, 9443, 25565,
];

/// Sorted by port. Only ports that belong to one service: a number that many web applications use, such as 8080, does
/// not identify one.
#[rustfmt::skip]
pub const DANGERS: &[Danger] = &[
    danger(111, Tcp, Open, Leak, "rpcbind", "a list of this host's RPC services"),
    danger(111, Udp, Open, Leak, "rpcbind", "answers that flood others in this host's name"),
    danger(389, Tcp, Varies, Breach, "LDAP", "the accounts of the directory"),
    danger(389, Udp, Varies, Leak, "connectionless LDAP", "answers that flood others in this host's name"),
    danger(445, Tcp, Asked, Breach, "SMB", "the shared files"),
    danger(873, Tcp, Varies, Breach, "rsync", "the files of its modules"),
    danger(1025, Tcp, Open, Leak, "Mailpit or MailHog", "mail sent into the inbox of tests"),
    danger(1433, Tcp, Asked, Breach, "Microsoft SQL Server", "every database, and as administrator commands on its host"),
    danger(1521, Tcp, Asked, Breach, "Oracle Database", "every database"),
    danger(1883, Tcp, Varies, Breach, "MQTT", "every message, read or forged"),
    danger(1900, Udp, Open, Leak, "SSDP", "answers that flood others in this host's name"),
    danger(2049, Tcp, Varies, Breach, "NFS", "the exported files"),
    danger(2181, Tcp, Open, Breach, "ZooKeeper", "the configuration of every service that keeps it there"),
    danger(2345, Tcp, Open, Breach, "Delve", "any command in the program that is debugged"),
    danger(2375, Tcp, Open, Breach, "Docker's API", "root on the host, by a container that mounts its disk"),
    danger(2376, Tcp, Asked, Breach, "Docker's API over TLS", "root on the host, by a container that mounts its disk"),
    danger(2379, Tcp, Open, Breach, "etcd", "every key: of a Kubernetes cluster, all secrets"),
    danger(2380, Tcp, Open, Breach, "etcd's peers", "a place in the cluster, and with it every key"),
    danger(3100, Tcp, Open, Breach, "Loki", "every log line"),
    danger(3306, Tcp, Asked, Breach, "MySQL or MariaDB", "every database"),
    danger(3389, Tcp, Asked, Breach, "RDP", "the desktop"),
    danger(4222, Tcp, Open, Breach, "NATS", "every message, read or forged"),
    danger(4369, Tcp, Open, Leak, "Erlang's port mapper", "the way to nodes that only a cookie protects"),
    danger(4444, Tcp, Open, Breach, "Selenium Grid", "browsers inside your network"),
    danger(4646, Tcp, Open, Breach, "Nomad", "any command on every node"),
    danger(5005, Tcp, Open, Breach, "Java's debugger", "any command in the program that is debugged"),
    danger(5432, Tcp, Asked, Breach, "PostgreSQL", "every database, and as superuser commands on its host"),
    danger(5601, Tcp, Varies, Breach, "Kibana", "all that Elasticsearch holds"),
    danger(5672, Tcp, Asked, Breach, "RabbitMQ", "every message, read, forged or removed"),
    danger(5900, Tcp, Varies, Breach, "VNC", "the screen, the keyboard and the mouse"),
    danger(5984, Tcp, Asked, Breach, "CouchDB", "every database"),
    danger(6333, Tcp, Open, Breach, "Qdrant", "every collection, read or deleted"),
    danger(6334, Tcp, Open, Breach, "Qdrant's gRPC", "every collection, read or deleted"),
    danger(6379, Tcp, Open, Breach, "Redis", "every key, and files written where its user may write"),
    danger(6443, Tcp, Asked, Breach, "Kubernetes' API", "the whole cluster"),
    danger(7077, Tcp, Open, Breach, "Spark's master", "any code on every worker"),
    danger(7233, Tcp, Open, Breach, "Temporal", "every workflow with its arguments, and new ones"),
    danger(7474, Tcp, Asked, Breach, "Neo4j", "the whole graph"),
    danger(7687, Tcp, Asked, Breach, "Neo4j's Bolt", "the whole graph"),
    danger(7860, Tcp, Open, Breach, "Gradio, such as a Stable Diffusion web UI", "the graphics card, and all that the application can do"),
    danger(8025, Tcp, Open, Breach, "Mailpit or MailHog", "every mail caught, password resets among them"),
    danger(8086, Tcp, Varies, Breach, "InfluxDB", "every measurement"),
    danger(8088, Tcp, Open, Breach, "Hadoop YARN", "any command on every node"),
    danger(8188, Tcp, Open, Breach, "ComfyUI", "the graphics card, and any code that its nodes run"),
    danger(8200, Tcp, Asked, Breach, "Vault", "every secret"),
    danger(8265, Tcp, Open, Breach, "Ray's dashboard", "any command on every node of the cluster"),
    danger(8500, Tcp, Open, Breach, "Consul", "its keys and its catalogue of services, to change too"),
    danger(8529, Tcp, Asked, Breach, "ArangoDB", "every database"),
    danger(8888, Tcp, Asked, Breach, "Jupyter", "any command as its user, and every notebook"),
    danger(8983, Tcp, Open, Breach, "Solr", "every index, and often any command as its user"),
    danger(9042, Tcp, Open, Breach, "Cassandra", "every table"),
    danger(9090, Tcp, Open, Leak, "Prometheus", "every measurement, and the names and addresses of its targets"),
    danger(9092, Tcp, Open, Breach, "Kafka", "every message, read or forged"),
    danger(9093, Tcp, Open, Leak, "Alertmanager", "every alert, to silence too"),
    danger(9100, Tcp, Open, Leak, "Prometheus' node exporter", "the services, mounts and load of this host"),
    danger(9200, Tcp, Varies, Breach, "Elasticsearch or OpenSearch", "every index, read or deleted"),
    danger(9229, Tcp, Open, Breach, "Node.js' inspector", "any command in the program that is debugged"),
    danger(9300, Tcp, Varies, Breach, "Elasticsearch's nodes", "a place in the cluster, and with it every index"),
    danger(9411, Tcp, Open, Leak, "Zipkin", "every trace, with the data of its requests"),
    danger(10250, Tcp, Asked, Breach, "kubelet", "any command in every container of the node"),
    danger(10255, Tcp, Open, Breach, "kubelet, read-only", "every container's configuration, environment included"),
    danger(11211, Tcp, Open, Breach, "memcached", "everything cached, sessions among it"),
    danger(11211, Udp, Open, Leak, "memcached", "answers that flood others in this host's name, ten thousand times the request"),
    danger(11434, Tcp, Open, Breach, "Ollama", "the graphics card, and every model: used, replaced or deleted"),
    danger(15672, Tcp, Asked, Breach, "RabbitMQ's management", "every queue and account"),
    danger(16686, Tcp, Open, Leak, "Jaeger", "every trace, with the data of its requests"),
    danger(19530, Tcp, Open, Breach, "Milvus", "every collection, read or deleted"),
    danger(25575, Tcp, Asked, Breach, "Minecraft's RCON", "every command of the server's operator"),
    danger(25672, Tcp, Asked, Breach, "RabbitMQ's nodes", "any command on the node"),
    danger(26257, Tcp, Varies, Breach, "CockroachDB", "every database"),
    danger(26379, Tcp, Open, Breach, "Redis Sentinel", "the choice of which Redis is the primary"),
    danger(27017, Tcp, Open, Breach, "MongoDB", "every database, read or deleted"),
    danger(28015, Tcp, Open, Breach, "RethinkDB", "every table"),
    danger(50070, Tcp, Open, Breach, "Hadoop's NameNode", "every file of the cluster"),
];

const HOST: &str = "every container of this host, and with a new one root on it";
const RUNS: &str = "the models, and the graphics card";
const SHELL: &str = "a shell in the container, and every file that it mounts";
const HOME: &str = "the names that your devices look up, to redirect too";
const TRAFFIC: &str = "every download, and files written where its user may write";
const SECRETS: &str = "every connection with its credentials, and any code that it runs";

/// Services whose port many others use as well, so that only the image identifies them: mostly panels that rule
/// something. Images without registry and tag; one with a slash is looked for
/// in the whole image.
#[rustfmt::skip]
pub const PANELS: &[Panel] = &[
    (&["portainer", "portainer-ce", "portainer-ee"], danger(9000, Tcp, Asked, Breach, "Portainer", HOST)),
    (&["portainer", "portainer-ce", "portainer-ee"], danger(9443, Tcp, Asked, Breach, "Portainer", HOST)),
    (&["portainer", "portainer-ce", "portainer-ee"], danger(8000, Tcp, Asked, Breach, "Portainer's tunnel for agents", HOST)),
    (&["portainer/agent"], danger(9001, Tcp, Varies, Breach, "Portainer's agent", HOST)),
    (&["traefik"], danger(8080, Tcp, Varies, Leak, "Traefik's dashboard", "every route with its middlewares, and the addresses of the services behind")),
    (&["dockge"], danger(5001, Tcp, Asked, Breach, "Dockge", HOST)),
    (&["yacht"], danger(8000, Tcp, Asked, Breach, "Yacht", HOST)),
    (&["komodo-core"], danger(9120, Tcp, Asked, Breach, "Komodo", HOST)),
    (&["coolify"], danger(8080, Tcp, Asked, Breach, "Coolify", HOST)),
    (&["casaos"], danger(8080, Tcp, Asked, Breach, "CasaOS", HOST)),
    (&["cosmos-server"], danger(80, Tcp, Asked, Breach, "Cosmos", HOST)),
    (&["rancher"], danger(443, Tcp, Asked, Breach, "Rancher", "every cluster that it manages")),
    (&["rancher"], danger(80, Tcp, Asked, Breach, "Rancher", "every cluster that it manages")),
    (&["dozzle"], danger(8080, Tcp, Open, Breach, "Dozzle", "the log of every container of this host, and with actions on, the containers too")),
    (&["cadvisor"], danger(8080, Tcp, Open, Leak, "cAdvisor", "the containers, images and processes of this host")),
    (&["nginx-proxy-manager", "nginx-proxy-manager-zh"], danger(81, Tcp, Asked, Breach, "Nginx Proxy Manager's panel", "every route and certificate of the proxy")),
    (&["phpmyadmin"], danger(80, Tcp, Asked, Breach, "phpMyAdmin", "a login form to every database")),
    (&["adminer"], danger(8080, Tcp, Asked, Breach, "Adminer", "a login form to every database")),
    (&["pgadmin4"], danger(80, Tcp, Asked, Breach, "pgAdmin", "every database server that is saved in it")),
    (&["pgadmin4"], danger(443, Tcp, Asked, Breach, "pgAdmin", "every database server that is saved in it")),
    (&["pgweb"], danger(8081, Tcp, Varies, Breach, "pgweb", "every table of its database")),
    (&["cloudbeaver"], danger(8978, Tcp, Asked, Breach, "CloudBeaver", "every database server that is saved in it")),
    (&["mongo-express"], danger(8081, Tcp, Varies, Breach, "mongo-express", "every database of its MongoDB")),
    (&["redis-commander"], danger(8081, Tcp, Varies, Breach, "Redis Commander", "every key of its Redis")),
    (&["redisinsight"], danger(5540, Tcp, Open, Breach, "Redis Insight", "every Redis that is saved in it")),
    (&["redisinsight", "redis-stack"], danger(8001, Tcp, Open, Breach, "Redis Insight", "every Redis that is saved in it")),
    (&["phpldapadmin"], danger(80, Tcp, Asked, Breach, "phpLDAPadmin", "a login form to the directory")),
    (&["phpldapadmin"], danger(443, Tcp, Asked, Breach, "phpLDAPadmin", "a login form to the directory")),
    (&["grafana", "grafana-oss", "grafana-enterprise"], danger(3000, Tcp, Asked, Leak, "Grafana", "every data source with its queries: the first login is admin with the password admin")),
    (&["netdata"], danger(19999, Tcp, Open, Leak, "Netdata", "the services, containers and load of this host")),
    (&["jenkins"], danger(8080, Tcp, Asked, Breach, "Jenkins", "any command on its nodes, and every credential")),
    (&["airflow"], danger(8080, Tcp, Asked, Breach, "Airflow", SECRETS)),
    (&["n8n"], danger(5678, Tcp, Asked, Breach, "n8n", SECRETS)),
    (&["node-red"], danger(1880, Tcp, Open, Breach, "Node-RED", SECRETS)),
    (&["langflow"], danger(7860, Tcp, Varies, Breach, "Langflow", SECRETS)),
    (&["superset"], danger(8088, Tcp, Asked, Breach, "Superset", "every database that is saved in it")),
    (&["rundeck"], danger(4440, Tcp, Asked, Breach, "Rundeck", "any command on its nodes")),
    (&["semaphore"], danger(3000, Tcp, Asked, Breach, "Semaphore", "any command on its hosts, with their keys")),
    (&["zeppelin"], danger(8080, Tcp, Varies, Breach, "Zeppelin", "any command as its user, and every notebook")),
    (&["flower"], danger(5555, Tcp, Open, Breach, "Flower", "every task of Celery with its arguments, to cancel too")),
    (&["kafka-ui"], danger(8080, Tcp, Varies, Breach, "Kafka UI", "every message and topic of its clusters, to change too")),
    (&["akhq"], danger(8080, Tcp, Open, Breach, "AKHQ", "every message and topic of its clusters, to change too")),
    (&["kafdrop"], danger(9000, Tcp, Open, Breach, "Kafdrop", "every message and topic of its clusters")),
    (&["cp-schema-registry"], danger(8081, Tcp, Open, Breach, "Schema Registry", "every schema, to change too")),
    (&["cp-ksqldb-server", "ksqldb-server"], danger(8088, Tcp, Open, Breach, "ksqlDB", "every stream and table")),
    (&["cp-kafka-connect"], danger(8083, Tcp, Open, Breach, "Kafka Connect", "every connector with its credentials, and new ones")),
    (&["temporalio/ui"], danger(8080, Tcp, Varies, Breach, "Temporal's web UI", "every workflow with its arguments")),
    (&["minio"], danger(9001, Tcp, Asked, Breach, "MinIO's console", "every bucket")),
    (&["weaviate"], danger(8080, Tcp, Varies, Breach, "Weaviate", "every collection, read or deleted")),
    (&["clickhouse-server"], danger(8123, Tcp, Varies, Breach, "ClickHouse", "every table")),
    (&["clickhouse-server"], danger(9000, Tcp, Varies, Breach, "ClickHouse", "every table")),
    (&["surrealdb"], danger(8000, Tcp, Varies, Breach, "SurrealDB", "every table")),
    (&["chroma"], danger(8000, Tcp, Open, Breach, "Chroma", "every collection, read or deleted")),
    (&["registry"], danger(5000, Tcp, Open, Breach, "Docker's registry", "every image, read or replaced")),
    (&["vllm-openai"], danger(8000, Tcp, Open, Breach, "vLLM", RUNS)),
    (&["localai"], danger(8080, Tcp, Open, Breach, "LocalAI", RUNS)),
    (&["text-generation-inference"], danger(80, Tcp, Open, Breach, "Text Generation Inference", RUNS)),
    (&["invokeai"], danger(9090, Tcp, Open, Breach, "InvokeAI", RUNS)),
    (&["code-server"], danger(8080, Tcp, Asked, Breach, "code-server", SHELL)),
    (&["code-server"], danger(8443, Tcp, Varies, Breach, "code-server", SHELL)),
    (&["openvscode-server"], danger(3000, Tcp, Open, Breach, "OpenVSCode Server", SHELL)),
    (&["rstudio"], danger(8787, Tcp, Asked, Breach, "RStudio", SHELL)),
    (&["ttyd", "wetty"], danger(7681, Tcp, Open, Breach, "ttyd", "a shell")),
    (&["wetty"], danger(3000, Tcp, Asked, Breach, "WeTTY", "a shell")),
    (&["webmin"], danger(10000, Tcp, Asked, Breach, "Webmin", "root on its host")),
    (&["guacamole"], danger(8080, Tcp, Asked, Breach, "Guacamole", "every desktop and shell that is saved in it")),
    (&["pihole"], danger(80, Tcp, Asked, Breach, "Pi-hole's panel", HOME)),
    (&["pihole"], danger(443, Tcp, Asked, Breach, "Pi-hole's panel", HOME)),
    (&["adguardhome"], danger(3000, Tcp, Varies, Breach, "AdGuard Home's setup", HOME)),
    (&["adguardhome"], danger(80, Tcp, Asked, Breach, "AdGuard Home's panel", HOME)),
    (&["wg-easy"], danger(51821, Tcp, Asked, Breach, "wg-easy", "keys for the VPN, and with them the networks behind")),
    (&["filebrowser"], danger(80, Tcp, Asked, Breach, "File Browser", "every file that it serves, to change too")),
    (&["duplicati"], danger(8200, Tcp, Varies, Breach, "Duplicati", "every backup, and the files of this host that it mounts")),
    (&["syncthing"], danger(8384, Tcp, Varies, Breach, "Syncthing's panel", "every folder that it synchronises")),
    (&["transmission"], danger(9091, Tcp, Varies, Breach, "Transmission", TRAFFIC)),
    (&["qbittorrent", "qbittorrent-nox"], danger(8080, Tcp, Asked, Breach, "qBittorrent", TRAFFIC)),
    (&["sabnzbd"], danger(8080, Tcp, Varies, Breach, "SABnzbd", TRAFFIC)),
    (&["home-assistant"], danger(8123, Tcp, Asked, Leak, "Home Assistant", "every device of the house")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_listed_once_and_in_order() {
        let places: Vec<u16> = DANGERS.iter().map(|danger| danger.port).collect();
        assert!(places.is_sorted(), "{places:?}");
        for (index, danger) in DANGERS.iter().enumerate() {
            let same =
                |other: &&Danger| (other.protocol, other.port) == (danger.protocol, danger.port);
            assert!(
                !DANGERS[..index].iter().any(|other| same(&other)),
                "{danger:?}"
            );
        }
    }

    #[test]
    fn a_panel_is_listed_once_for_each_of_its_images_and_ports() {
        let mut seen = std::collections::HashSet::new();
        for (images, danger) in PANELS {
            for image in *images {
                assert!(seen.insert((image, danger.port)), "{image} {danger:?}");
            }
        }
    }

    #[test]
    fn a_panel_is_known_by_its_image() {
        let services = |image: &str| -> Vec<(u16, &str)> {
            let panels = panels_of(image);
            panels.map(|panel| (panel.port, panel.service)).collect()
        };
        let adminer = services("registry.example:5000/library/adminer:4@sha256:00");
        assert_eq!(adminer, [(8080, "Adminer")]);
        assert_eq!(services("portainer/portainer-ce:2").len(), 3);
        assert_eq!(services("portainer/agent"), [(9001, "Portainer's agent")]);
        assert_eq!(services("example/agent"), []);
        assert_eq!(services(""), []);
    }

    #[test]
    fn a_port_is_looked_up_with_its_protocol() {
        assert_eq!(danger_at(Tcp, 11434).unwrap().service, "Ollama");
        assert_eq!(danger_at(Udp, 11434), None);
        assert_eq!(danger_at(Tcp, 443), None);
    }
}
