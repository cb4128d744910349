//! Switches that turn the login of a service off. To add a switch, add its row to [`SWITCHES`], with its documentation.

use self::{
    SwitchPlace::{Argument, Variable},
    SwitchValue::{Empty, NotEmpty, Off, On, Word},
};

/// A variable or an argument that turns a login off.
pub struct LoginSwitch {
    /// Images that it applies to; if they are built, services with the name. A part with a slash, or after `*`, is looked
    /// for in the whole image. Empty: the switch has a name that nothing else uses.
    pub images: &'static [&'static str],
    pub place: SwitchPlace,
    pub value: SwitchValue,
    /// The switch counts only if one of these variables has its value. Empty: the switch counts alone.
    pub with: &'static [(&'static str, &'static str)],
    /// Where one of these is set, there is a login all the same: a variable, its end after `*`, an argument, or a mount
    /// below a path.
    pub unless: &'static [&'static str],
    /// The ports of the container that it opens. Empty: all that the service publishes.
    pub ports: &'static [u16],
    pub service: &'static str,
    /// Whether an intruder only looks.
    pub is_read_only: bool,
    pub gain: &'static str,
    /// The change that brings the login back.
    pub instead: &'static str,
    /// The documentation of the switch.
    pub source: &'static str,
}

/// Where a switch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchPlace {
    /// In `environment`.
    Variable(&'static str),
    /// In `command` or `entrypoint`, in lower case.
    Argument(&'static str),
}

/// The values of a switch that turn the login off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchValue {
    /// `true`, `1`, `yes` or `on`; an argument also without a value.
    On,
    /// `false`, `0`, `no` or `off`.
    Off,
    /// An empty value.
    Empty,
    /// Any value.
    NotEmpty,
    /// This word.
    Word(&'static str),
}

impl SwitchValue {
    /// Whether this value turns the login off. `None`: an argument without a value.
    pub fn fits(self, value: Option<&str>) -> bool {
        let Some(value) = value else {
            return self == On;
        };
        let value = value.trim().to_ascii_lowercase();
        match self {
            On => ["true", "1", "yes", "on", "y", "t"].contains(&value.as_str()),
            Off => ["false", "0", "no", "off", "n", "f"].contains(&value.as_str()),
            Empty => value.is_empty(),
            NotEmpty => !value.is_empty(),
            Word(word) => value == word,
        }
    }
}

/// What most rows have in common.
const SWITCH: LoginSwitch = LoginSwitch {
    images: &[],
    place: Variable(""),
    value: On,
    with: &[],
    unless: &[],
    ports: &[],
    service: "",
    is_read_only: false,
    gain: "",
    instead: "",
    source: "",
};

const ROOT_PASSWORDS: &[&str] = &[
    "*_ROOT_PASSWORD",
    "*_ROOT_PASSWORD_FILE",
    "*_ROOT_PASSWORD_HASH",
    "*_RANDOM_ROOT_PASSWORD",
];
const JUPYTER_PASSWORDS: &[&str] = &[
    "--serverapp.password",
    "--notebookapp.password",
    "--passwordidentityprovider.hashed_password",
];
const DATABASES: &str = "every database";
const INDICES: &str = "every index, read or deleted";
const ROUTES: &str = "every route with its middlewares, and the addresses of the services behind";
const NOTEBOOKS: &str = "any command as its user, and every notebook";
const SHELL: &str = "a shell in the container, and every file that it mounts";
const MESSAGES: &str = "every message, read or forged";
const JUPYTER: &str =
    "https://github.com/jupyter-server/jupyter_server/blob/main/docs/source/operators/security.rst";
const TRAEFIK: &str = "https://doc.traefik.io/traefik/operations/api/";
const PIHOLE: &str = "https://docs.pi-hole.net/docker/configuration/";
const GRAFANA: &str = "https://grafana.com/docs/v5.3/auth/overview/";
const OPENSEARCH: &str = "https://docs.opensearch.org/2.11/security/configuration/disable";
const SURREALDB: &str = "https://github.com/surrealdb/surrealdb";
const FILEBROWSER: &str =
    "https://github.com/filebrowser/filebrowser/blob/master/www/docs/authentication.md";
const NO_TOKEN: &str = "remove it: Jupyter then prints a token when it starts";
const BASIC_AUTH: &str =
    "remove it, and set ME_CONFIG_BASICAUTH_ENABLED=true with a user and a password";
const NO_INSECURE: &str =
    "remove it, and route api@internal with a basicauth middleware if you need the dashboard";
const SECURED: &str = "remove it, and set ELASTIC_PASSWORD";
const OPENSEARCH_ADMIN: &str = "remove it, and set OPENSEARCH_INITIAL_ADMIN_PASSWORD";
const ROOT_PASSWORD: &str =
    "remove it, and set a root password: a database that exists needs ALTER USER";

/// The switches. The first that fits a place counts.
#[rustfmt::skip]
pub const SWITCHES: &[LoginSwitch] = &[
    LoginSwitch { place: Variable("WEBUI_AUTH"), value: Off, service: "Open WebUI",
        gain: "every chat, the models, and code that its tools run",
        instead: "remove the line: the first account that signs up is the administrator. Users need accounts from then on",
        source: "https://docs.openwebui.com/getting-started/advanced-topics/env-configuration", ..SWITCH },
    LoginSwitch { place: Argument("--api.insecure"), ports: &[8080], service: "Traefik's dashboard", gain: ROUTES,
        instead: NO_INSECURE, source: TRAEFIK, ..SWITCH },
    LoginSwitch { place: Variable("TRAEFIK_API_INSECURE"), ports: &[8080], service: "Traefik's dashboard", gain: ROUTES,
        instead: NO_INSECURE, source: TRAEFIK, ..SWITCH },
    LoginSwitch { place: Variable("GF_AUTH_ANONYMOUS_ENABLED"), service: "Grafana",
        with: &[("GF_AUTH_ANONYMOUS_ORG_ROLE", "admin"), ("GF_AUTH_ANONYMOUS_ORG_ROLE", "editor")],
        gain: "every data source with its queries, and the dashboards to change",
        instead: "remove it, or set GF_AUTH_ANONYMOUS_ORG_ROLE to Viewer", source: GRAFANA, ..SWITCH },
    LoginSwitch { place: Variable("GF_AUTH_ANONYMOUS_ENABLED"), service: "Grafana", is_read_only: true,
        gain: "every dashboard, and queries to its data sources",
        instead: "remove it, unless the dashboards are meant for everybody", source: GRAFANA, ..SWITCH },
    LoginSwitch { place: Variable("POSTGRES_HOST_AUTH_METHOD"), value: Word("trust"), service: "PostgreSQL",
        gain: "every database, and as superuser commands in the container",
        instead: "remove it, and set POSTGRES_PASSWORD: a database that exists also needs its pg_hba.conf changed",
        source: "https://github.com/docker-library/docs/blob/master/postgres/content.md", ..SWITCH },
    LoginSwitch { place: Variable("MYSQL_ALLOW_EMPTY_PASSWORD"), value: NotEmpty, unless: ROOT_PASSWORDS,
        service: "MySQL", gain: DATABASES, instead: ROOT_PASSWORD,
        source: "https://github.com/docker-library/docs/blob/master/mysql/content.md", ..SWITCH },
    LoginSwitch { place: Variable("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD"), value: NotEmpty, unless: ROOT_PASSWORDS,
        service: "MariaDB", gain: DATABASES, instead: ROOT_PASSWORD,
        source: "https://github.com/docker-library/docs/blob/master/mariadb/content.md", ..SWITCH },
    LoginSwitch { place: Variable("ALLOW_EMPTY_PASSWORD"), unless: &["*_PASSWORD", "*_PASSWORD_FILE"],
        service: "this service", gain: "all that it holds",
        instead: "remove it, and set the password that the image names, such as REDIS_PASSWORD",
        source: "https://github.com/bitnami/containers/blob/main/bitnami/redis/README.md", ..SWITCH },
    LoginSwitch { place: Variable("ALLOW_ANONYMOUS_LOGIN"), service: "ZooKeeper",
        gain: "the configuration of every service that keeps it there",
        instead: "remove it, and set ZOO_ENABLE_AUTH=yes with a user and a password",
        source: "https://github.com/bitnami/containers/blob/main/bitnami/zookeeper/README.md", ..SWITCH },
    LoginSwitch { place: Variable("xpack.security.enabled"), value: Off, service: "Elasticsearch", gain: INDICES,
        instead: SECURED, source: "https://elastic.co/guide/en/elastic-stack-overview/6.4/get-started-enable-security.html",
        ..SWITCH },
    LoginSwitch { place: Argument("-expack.security.enabled"), value: Off, service: "Elasticsearch", gain: INDICES,
        instead: SECURED, source: "https://elastic.co/guide/en/elastic-stack-overview/6.4/get-started-enable-security.html",
        ..SWITCH },
    LoginSwitch { place: Variable("DISABLE_SECURITY_PLUGIN"), service: "OpenSearch", gain: INDICES,
        instead: OPENSEARCH_ADMIN, source: OPENSEARCH, ..SWITCH },
    LoginSwitch { place: Variable("plugins.security.disabled"), service: "OpenSearch", gain: INDICES,
        instead: OPENSEARCH_ADMIN, source: OPENSEARCH, ..SWITCH },
    LoginSwitch { place: Variable("DISABLE_SECURITY_DASHBOARDS_PLUGIN"), service: "OpenSearch Dashboards",
        gain: "all that OpenSearch holds", instead: "remove it, together with DISABLE_SECURITY_PLUGIN of OpenSearch",
        source: OPENSEARCH, ..SWITCH },
    LoginSwitch { place: Variable("NEO4J_AUTH"), value: Word("none"), service: "Neo4j", gain: "the whole graph",
        instead: "write neo4j/ and a password",
        source: "https://github.com/docker-library/docs/blob/master/neo4j/content.md", ..SWITCH },
    LoginSwitch { place: Variable("ME_CONFIG_BASICAUTH_ENABLED"), value: Off, service: "mongo-express",
        gain: "every database of its MongoDB", instead: BASIC_AUTH,
        source: "https://github.com/mongo-express/mongo-express-docker", ..SWITCH },
    LoginSwitch { place: Variable("ME_CONFIG_BASICAUTH"), value: Off, service: "mongo-express",
        gain: "every database of its MongoDB", instead: BASIC_AUTH,
        source: "https://github.com/mongo-express/mongo-express-docker", ..SWITCH },
    LoginSwitch { place: Variable("AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED"), service: "Weaviate",
        gain: "every collection, read or deleted",
        instead: "write false, and set AUTHENTICATION_APIKEY_ENABLED=true with AUTHENTICATION_APIKEY_ALLOWED_KEYS",
        source: "https://docs.weaviate.io/deploy/configuration/authentication", ..SWITCH },
    LoginSwitch { place: Variable("CLICKHOUSE_SKIP_USER_SETUP"), unless: &["/etc/clickhouse-server/users"],
        service: "ClickHouse", gain: "every table",
        instead: "remove it, and set CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
        source: "https://github.com/ClickHouse/ClickHouse/blob/master/docker/server/README.md", ..SWITCH },
    LoginSwitch { place: Variable("DISABLE_ADMIN_TOKEN"), service: "Vaultwarden's admin page",
        gain: "the settings, and every account to delete or invite",
        instead: "remove it, and set ADMIN_TOKEN to the hash that `vaultwarden hash` prints",
        source: "https://github.com/dani-garcia/vaultwarden/blob/main/.env.template", ..SWITCH },
    LoginSwitch { place: Variable("PHOTOPRISM_AUTH_MODE"), value: Word("public"), service: "PhotoPrism",
        gain: "every picture, to delete too", instead: "write password, and set PHOTOPRISM_ADMIN_PASSWORD",
        source: "https://docs.photoprism.app/getting-started/config-options/", ..SWITCH },
    LoginSwitch { place: Variable("FB_NOAUTH"), service: "File Browser", gain: "every file that it serves, to change too",
        instead: "remove it: a database that was made without login must be made again", source: FILEBROWSER, ..SWITCH },
    LoginSwitch { images: &["filebrowser"], place: Argument("--noauth"), service: "File Browser",
        gain: "every file that it serves, to change too",
        instead: "remove it: a database that was made without login must be made again", source: FILEBROWSER, ..SWITCH },
    LoginSwitch { place: Variable("LANGFLOW_AUTO_LOGIN"), service: "Langflow",
        gain: "every flow with its keys, and any code that a flow runs",
        instead: "write false, and set LANGFLOW_SUPERUSER and LANGFLOW_SUPERUSER_PASSWORD",
        source: "https://docs.langflow.org/api-keys-and-authentication", ..SWITCH },
    LoginSwitch { place: Variable("PAPERLESS_AUTO_LOGIN_USERNAME"), value: NotEmpty, service: "Paperless",
        gain: "every document, as the user that it names", instead: "remove it: users then log in",
        source: "https://docs.paperless-ngx.com/configuration/#PAPERLESS_AUTO_LOGIN_USERNAME", ..SWITCH },
    LoginSwitch { place: Variable("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"), service: "Airflow",
        gain: "every connection with its password, and any code that a DAG runs",
        instead: "remove it: Airflow then writes passwords for its users into a file",
        source: "https://airflow.apache.org/docs/apache-airflow/stable/core-concepts/auth-manager/simple/index.html",
        ..SWITCH },
    LoginSwitch { images: &["kafka-ui"], place: Variable("AUTH_TYPE"), value: Word("disabled"), service: "Kafka UI",
        gain: "every message and topic of its clusters, to change too",
        instead: "write LOGIN_FORM, and set SPRING_SECURITY_USER_NAME and SPRING_SECURITY_USER_PASSWORD",
        source: "https://github.com/provectus/kafka-ui", ..SWITCH },
    LoginSwitch { place: Variable("HIVEMQ_ALLOW_ALL_CLIENTS"), service: "HiveMQ", gain: MESSAGES,
        instead: "write false, and add an extension that authenticates clients",
        source: "https://github.com/hivemq/hivemq4-docker-images", ..SWITCH },
    LoginSwitch { place: Variable("DOCKER_VERNEMQ_ALLOW_ANONYMOUS"), service: "VerneMQ", gain: MESSAGES,
        instead: "write off, and set DOCKER_VERNEMQ_USER_ and a name to a password",
        source: "https://github.com/vernemq/docker-vernemq", ..SWITCH },
    LoginSwitch { place: Variable("SURREAL_UNAUTHENTICATED"), service: "SurrealDB", gain: "every table",
        instead: "remove it, and set SURREAL_USER and SURREAL_PASS", source: SURREALDB, ..SWITCH },
    LoginSwitch { images: &["surrealdb", "surreal"], place: Argument("--unauthenticated"), service: "SurrealDB",
        gain: "every table", instead: "remove it, and add --user and --pass", source: SURREALDB, ..SWITCH },
    LoginSwitch { place: Variable("ARANGO_NO_AUTH"), service: "ArangoDB", gain: DATABASES,
        instead: "remove it, and set ARANGO_ROOT_PASSWORD",
        source: "https://github.com/docker-library/docs/blob/master/arangodb/content.md", ..SWITCH },
    LoginSwitch { place: Variable("PGADMIN_CONFIG_SERVER_MODE"), value: Off, service: "pgAdmin",
        gain: "every database server that is saved in it, often with its password",
        instead: "remove it, and log in with PGADMIN_DEFAULT_EMAIL and PGADMIN_DEFAULT_PASSWORD",
        source: "https://pgadmin.org/docs/pgadmin4/latest/getting_started.html", ..SWITCH },
    LoginSwitch { place: Variable("FTLCONF_webserver_api_password"), value: Empty, service: "Pi-hole",
        gain: "the names that your devices look up, to redirect too", instead: "write a password", source: PIHOLE,
        ..SWITCH },
    LoginSwitch { images: &["pihole"], place: Variable("WEBPASSWORD"), value: Empty, service: "Pi-hole",
        gain: "the names that your devices look up, to redirect too", instead: "write a password", source: PIHOLE,
        ..SWITCH },
    LoginSwitch { images: &["rocker/", "rstudio"], place: Variable("DISABLE_AUTH"), service: "RStudio", gain: SHELL,
        instead: "remove it, and set PASSWORD", source: "https://rocker-project.org/images/versioned/rstudio.html",
        ..SWITCH },
    LoginSwitch { images: &["*dind"], place: Variable("DOCKER_TLS_CERTDIR"), value: Empty, ports: &[2375],
        service: "Docker's API", gain: "root on the host, by way of this privileged container",
        instead: "remove it: clients then need the certificates below /certs/client, and port 2376",
        source: "https://github.com/docker-library/docs/blob/master/docker/content.md", ..SWITCH },
    LoginSwitch { images: &["redis", "redis-server", "redis-stack", "valkey", "valkey-server", "keydb"],
        place: Argument("--protected-mode"), value: Off,
        unless: &["--requirepass", "--aclfile", "--user", "REDIS_PASSWORD"], service: "Redis",
        gain: "every key, and files written where its user may write",
        instead: "remove it, and add --requirepass with a password",
        source: "https://redis.io/docs/latest/develop/reference/errors/common/denied/", ..SWITCH },
    LoginSwitch { place: Argument("--serverapp.token"), value: Empty, unless: JUPYTER_PASSWORDS, service: "Jupyter",
        gain: NOTEBOOKS, instead: NO_TOKEN, source: JUPYTER, ..SWITCH },
    LoginSwitch { place: Argument("--notebookapp.token"), value: Empty, unless: JUPYTER_PASSWORDS, service: "Jupyter",
        gain: NOTEBOOKS, instead: NO_TOKEN, source: JUPYTER, ..SWITCH },
    LoginSwitch { place: Argument("--identityprovider.token"), value: Empty, unless: JUPYTER_PASSWORDS,
        service: "Jupyter", gain: NOTEBOOKS, instead: NO_TOKEN, source: JUPYTER, ..SWITCH },
    LoginSwitch { place: Argument("--labapp.token"), value: Empty, unless: JUPYTER_PASSWORDS, service: "Jupyter",
        gain: NOTEBOOKS, instead: NO_TOKEN, source: "https://github.com/jupyterlab/jupyterlab/issues/4667", ..SWITCH },
    LoginSwitch { images: &["code-server"], place: Argument("--auth"), value: Word("none"), service: "code-server",
        gain: SHELL, instead: "remove it, and set PASSWORD",
        source: "https://github.com/coder/code-server/blob/main/docs/guide.md", ..SWITCH },
    LoginSwitch { place: Argument("--without-connection-token"), service: "VS Code's server", gain: SHELL,
        instead: "write --connection-token-file= and a file with a token",
        source: "https://github.com/gitpod-io/openvscode-server", ..SWITCH },
    LoginSwitch { images: &["cockroach"], place: Argument("--insecure"), service: "CockroachDB", gain: DATABASES,
        instead: "remove it, and add --certs-dir with certificates from `cockroach cert`",
        source: "https://www.cockroachlabs.com/docs/stable/security-reference/authentication", ..SWITCH },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switch_has_its_documentation_and_what_to_do_instead() {
        for switch in SWITCHES {
            let (Variable(name) | Argument(name)) = switch.place;
            let texts = [name, switch.service, switch.gain, switch.instead];
            assert!(texts.iter().all(|text| !text.is_empty()), "{name}");
            assert!(switch.source.starts_with("https://"), "{name}");
            if let Argument(name) = switch.place {
                assert_eq!(name, name.to_ascii_lowercase());
            }
        }
        assert!(SWITCHES.len() >= 40);
    }

    #[test]
    fn a_value_is_read_in_every_spelling_that_images_take() {
        for (value, text, fits) in [
            (On, Some("True"), true),
            (On, Some("1"), true),
            (On, Some("YES"), true),
            (On, Some("on"), true),
            (On, Some(" true "), true),
            (On, None, true),
            (On, Some("false"), false),
            (On, Some(""), false),
            (Off, Some("False"), true),
            (Off, Some("0"), true),
            (Off, Some("no"), true),
            (Off, Some(""), false),
            (Off, None, false),
            (Empty, Some(""), true),
            (Empty, None, false),
            (NotEmpty, Some("no"), true),
            (NotEmpty, Some(""), false),
            (Word("trust"), Some("Trust"), true),
            (Word("trust"), Some("scram-sha-256"), false),
        ] {
            assert_eq!(value.fits(text), fits, "{value:?} {text:?}");
        }
    }
}
