//! Output as SARIF 2.1.0, which code hosts show beside the lines of a change.

use std::path::{Component, Path};

use serde_json::{Value, json};

use super::{
    ComposeWarning, Edit, Printed,
    rule::{Rule, Severity},
};

/// The findings and warnings as a SARIF 2.1.0 log (OASIS).
pub fn sarif(findings: &[Printed], warnings: &[ComposeWarning]) -> Value {
    let rules: Vec<Value> = Rule::ALL.iter().map(|rule| described(*rule)).collect();
    let results: Vec<Value> = findings.iter().map(result).collect();
    let notifications: Vec<Value> = warnings.iter().map(notification).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "guard",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "invocations": [{
                "executionSuccessful": true,
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    })
}

fn described(rule: Rule) -> Value {
    json!({ "id": rule.name(), "shortDescription": { "text": rule.summary() } })
}

fn result(finding: &Printed) -> Value {
    let Printed {
        rule,
        severity,
        file,
        line,
        column,
        services,
        profiles: _,
        why,
        advice,
        fix,
        accept,
    } = finding;
    let mut message = format!("{}: {why}", services.join(", "));
    if let Some(advice) = advice {
        message.push_str(&format!(". {advice}"));
    }
    if let Some(line) = accept {
        message.push_str(&format!(". Meant for everybody? {line}"));
    }
    let index = Rule::ALL.iter().position(|known| known.name() == *rule);
    let mut result = json!({
        "ruleId": rule,
        "ruleIndex": index,
        "level": level(*severity),
        "message": { "text": message },
        "locations": [{ "physicalLocation": {
            "artifactLocation": { "uri": uri(file) },
            "region": { "startLine": line, "startColumn": column },
        }}],
        "properties": { "severity": severity, "services": services },
    });
    if let Some(Edit {
        file,
        line,
        column,
        end_line,
        end_column,
        text,
        corrected: _,
    }) = fix
    {
        result["fixes"] = json!([{ "artifactChanges": [{
            "artifactLocation": { "uri": uri(file) },
            "replacements": [{
                "deletedRegion": {
                    "startLine": line, "startColumn": column,
                    "endLine": end_line, "endColumn": end_column,
                },
                "insertedContent": { "text": text },
            }],
        }]}]);
    }
    result
}

fn notification(warning: &ComposeWarning) -> Value {
    let ComposeWarning {
        file,
        line,
        problem,
    } = warning;
    json!({
        "level": "warning",
        "message": { "text": problem },
        "locations": [{ "physicalLocation": {
            "artifactLocation": { "uri": uri(file) },
            "region": { "startLine": line },
        }}],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Low => "note",
        Severity::Medium => "warning",
        Severity::High | Severity::Critical => "error",
    }
}

/// A path as a URI (RFC 3986). A relative path stays relative to the folder of the command.
fn uri(file: &str) -> String {
    let path = Path::new(file);
    let parts = path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(escaped(&part.to_string_lossy())),
        Component::ParentDir => Some("..".to_owned()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    let relative = parts.collect::<Vec<_>>().join("/");
    match path.is_absolute() {
        true => format!("file:///{relative}"),
        false => relative,
    }
}

fn escaped(part: &str) -> String {
    let mut uri = String::new();
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                uri.push(byte.into())
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_uris() {
        assert_eq!(uri("./stack/../a b/ü.yaml"), "stack/../a%20b/%C3%BC.yaml");
        assert_eq!(uri("/srv/compose.yaml"), "file:///srv/compose.yaml");
    }
}
