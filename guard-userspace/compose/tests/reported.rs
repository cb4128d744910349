//! Public bug reports about tools that check compose files, and what guard finds instead.

use std::fs;

use guard_compose::{ComposeRequest, audit};

/// A report, the files, and the findings: `SERVICE SEVERITY RULE`.
struct ToolReport {
    by: &'static str,
    compose: &'static str,
    env: &'static str,
    findings: &'static [&'static str],
}

const REPORTS: [ToolReport; 11] = [
    ToolReport {
        by: "zavoloklom/docker-compose-linter#157: the ports of the proxy itself are no mistake",
        compose: "services: {traefik: {image: 'traefik:v3.3', user: '65535:65535', ports: ['80:80', '443:443']}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "zavoloklom/docker-compose-linter#261: the address of a port comes from .env",
        compose: "services: {mail: {image: 'sj26/mailcatcher', user: '1', ports: ['$SMTP_HOST:$SMTP_PORT:1025']}}",
        env: "SMTP_HOST=127.0.0.1\nSMTP_PORT=1025\n",
        findings: &[],
    },
    ToolReport {
        by: "the same, with an address that everybody reaches",
        compose: "services: {mail: {image: 'sj26/mailcatcher', user: '1', ports: ['$SMTP_HOST:$SMTP_PORT:1025']}}",
        env: "SMTP_HOST=0.0.0.0\nSMTP_PORT=1025\n",
        findings: &["mail medium dangerous-port"],
    },
    ToolReport {
        by: "zavoloklom/docker-compose-linter#91: ports of two protocols are no duplicates",
        compose: "services: {a: {image: a, user: '1', ports: ['127.0.0.1:8388:8388/tcp', '127.0.0.1:8388:8388/udp']}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "Checkmarx/kics#7514: /run/secrets is where a secret is, not the secret",
        compose: "services: {a: {image: a, user: '1', environment: {TLS_PRIVATE_KEY: /run/secrets/key, DB_PASSWORD_FILE: /run/secrets/db}}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "Checkmarx/kics#3763: GOPASS_VERSION is no password",
        compose: "services: {a: {image: a, user: '1', environment: {GOPASS_VERSION: 1.8.5}}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "gbrindisi/dockerfile-security#5: CC is no ACCESS_KEY",
        compose: "services: {a: {image: a, user: '1', environment: {CC: /usr/bin/clang, ACCESS: full, KEY: value}}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "gitleaks/gitleaks#1828: an empty password is none, and the next line is not its value",
        compose: "services: {a: {image: a, user: '1', environment: [QUESTIONNAIRE_DB_PASSWORD=, QUESTIONNAIRE_DB_ENABLED=1]}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "gitleaks/gitleaks#1857: the name of a variable that holds the secret is no secret",
        compose: "services: {a: {image: a, user: '1', environment: {API_KEY_ENV: MY_SECRET1}}}",
        env: "",
        findings: &[],
    },
    ToolReport {
        by: "gitleaks/gitleaks#1361: a secret is missed as the default of a variable",
        compose: "services: {a: {image: a, user: '1', environment: {OPENAI_API_KEY: '${OPENAI_API_KEY:-gsk_wewew222dfrffdsASRerTwr}'}}}",
        env: "",
        findings: &["a high secret-in-environment"],
    },
    ToolReport {
        by: "0din-ai/ai-scanner#168: a placeholder in .env passes ${NAME:?}",
        compose: "services: {a: {image: a, user: '1', environment: {SECRET_KEY_BASE: '${SECRET_KEY_BASE:?}', POSTGRES_PASSWORD: '${POSTGRES_PASSWORD:?}'}}}",
        env: "SECRET_KEY_BASE=generate_me_with_openssl_rand_hex_64\nPOSTGRES_PASSWORD=change_me\n",
        findings: &[
            "a critical secret-in-environment",
            "a critical secret-in-environment",
        ],
    },
];

#[test]
fn what_other_tools_were_reported_for_is_found_or_left_alone() {
    for ToolReport {
        by,
        compose,
        env,
        findings,
    } in REPORTS
    {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stack.yaml");
        fs::write(&file, compose).unwrap();
        fs::write(folder.path().join(".env"), env).unwrap();
        let report = audit(&ComposeRequest {
            files: vec![file],
            ..ComposeRequest::default()
        })
        .unwrap_or_else(|error| panic!("{by}: {error}"));
        assert!(report.warnings.is_empty(), "{by}: {:?}", report.warnings);
        let found = report.findings.iter().map(|finding| {
            let services = finding.services.join(", ");
            format!(
                "{services} {} {}",
                finding.severity.name(),
                finding.rule.name()
            )
        });
        assert_eq!(found.collect::<Vec<_>>(), findings, "{by}");
    }
}
