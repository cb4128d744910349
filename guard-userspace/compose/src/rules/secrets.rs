//! Rule about secrets in `environment`, recognised by the variable's name or by their own shape. A finding never
//! contains the secret.

use super::super::{
    finding::Finding,
    fix::Fix,
    placeholders,
    rule::{Rule::SecretInEnvironment, Severity},
    service::{ComposeService, Variable},
};

pub fn judge(service: &ComposeService<'_>) -> Vec<Finding> {
    let variables = service.environment.iter();
    variables
        .filter_map(|variable| {
            let secret = of_variable(variable)?;
            Some(finding(service, variable, &secret))
        })
        .collect()
}

fn of_variable(variable: &Variable<'_>) -> Option<Secret> {
    let name = &variable.name;
    let literal = literal(variable).trim();
    let value = variable.value().trim();
    let written = secret(name, literal);
    if value == literal {
        return written;
    }
    match (written, secret(name, value)) {
        (Some(Secret::Token(what)), _) => Some(Secret::Token(what)),
        (_, Some(Secret::Known)) => Some(Secret::KnownHere),
        // The project as it is here runs with another value.
        (Some(Secret::Known), _) => Some(Secret::KnownElsewhere),
        (written, _) => written,
    }
}

/// The value in the file itself: referenced variables count only with their defaults.
fn literal<'a>(variable: &'a Variable<'_>) -> &'a str {
    match &variable.scalar.reference {
        Some(reference) => variable.after_name(&reference.literal),
        None => variable.value(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Secret {
    /// The value has the shape of a known token or key.
    Token(&'static str),
    /// A password between the colon and the `@` of an address.
    InAddress,
    /// The variable has the name of a secret, and the value is one that everybody knows.
    Known,
    /// Such a value is a default, in place of which the environment sets another.
    KnownElsewhere,
    /// The environment or `.env` sets such a value.
    KnownHere,
    /// The variable has the name of a secret.
    Named,
}

fn secret(name: &str, value: &str) -> Option<Secret> {
    if let Some((_, _, what)) = TOKENS.iter().find(|token| is_token(value, token)) {
        return Some(Secret::Token(what));
    }
    if value.contains("PRIVATE KEY-----") {
        return Some(Secret::Token("a private key"));
    }
    if has_password(value) {
        return Some(Secret::InAddress);
    }
    if !is_secret_name(name) || !is_secret_value(value) {
        return None;
    }
    let issuer = issuer(name);
    let is_example = placeholders::is_known(value);
    match issuer {
        // A placeholder opens nothing there: the service only fails.
        Issuer::Other if is_example || is_to_fill_in(value) => None,
        Issuer::Unknown if is_to_fill_in(value) => None,
        _ if is_example => Some(Secret::Known),
        _ => Some(Secret::Named),
    }
}

/// Who has made a secret up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Issuer {
    /// This service, which accepts whatever is written.
    Own,
    /// Another, such as the vendor of an API or a mail provider.
    Other,
    Unknown,
}

/// Words in the names of secrets that vendors and providers issue.
#[rustfmt::skip]
const ISSUERS: &[&str] = &[
    "ANTHROPIC", "AWS", "AZURE", "BRAVE", "CF", "CLOUDFLARE", "COHERE", "DEEPSEEK", "DIGITALOCEAN", "DISCORD",
    "EMAIL", "FACEBOOK", "FIREWORKS", "GEMINI", "GITHUB", "GITLAB", "GOOGLE", "GROQ", "HF", "HUGGINGFACE", "JINA",
    "LANGCHAIN", "LANGSMITH", "MAIL", "MAILER", "MAILGUN", "MISTRAL", "OAUTH", "OAUTH2", "OIDC", "OPENAI",
    "OPENROUTER", "PAYPAL", "PERPLEXITY", "PINECONE", "PLEX", "RECAPTCHA", "REPLICATE", "RESEND", "SENDGRID",
    "SENTRY", "SERPAPI", "SERPER", "SLACK", "SMTP", "STRIPE", "TAVILY", "TELEGRAM", "TMDB", "TOGETHER", "TWILIO",
    "TWITTER", "VOYAGE", "XAI",
];

fn issuer(name: &str) -> Issuer {
    let name = name.to_ascii_uppercase();
    let words = || name.split(|c: char| !c.is_ascii_alphanumeric());
    if words().any(|word| ISSUERS.contains(&word)) || name.ends_with("CLIENT_SECRET") {
        return Issuer::Other;
    }
    let ends = [
        "API_KEY",
        "APIKEY",
        "ACCESS_KEY",
        "LICENSE_KEY",
        "TOKEN",
        "CREDENTIALS",
    ];
    let is_own = ["ADMIN", "AUTH", "INIT", "MASTER", "ROOT"]
        .iter()
        .any(|own| words().any(|word| word == *own));
    match ends.iter().any(|end| name.ends_with(end)) && !is_own {
        true => Issuer::Unknown,
        false => Issuer::Own,
    }
}

/// Whether a placeholder asks for a value that only others can give.
fn is_to_fill_in(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    placeholders::is_blank(&lower) || lower.starts_with("your")
}

/// Tokens: the prefix, the least number of letters, digits, `-`, `_` and `.` after it, and the description.
const TOKENS: [(&str, usize, &str); 29] = [
    ("AKIA", 16, "an access key of AWS"),
    ("ASIA", 16, "an access key of AWS"),
    ("AIza", 35, "a key of Google's"),
    ("GOCSPX-", 20, "a client secret of Google's"),
    ("SG.", 40, "a key of SendGrid's"),
    ("dckr_pat_", 20, "a token of Docker Hub's"),
    ("dop_v1_", 40, "a token of DigitalOcean's"),
    ("ghp_", 30, "a token of GitHub's"),
    ("gho_", 30, "a token of GitHub's"),
    ("ghs_", 30, "a token of GitHub's"),
    ("ghu_", 30, "a token of GitHub's"),
    ("github_pat_", 30, "a token of GitHub's"),
    ("glpat-", 20, "a token of GitLab's"),
    ("glrt-", 20, "a token of GitLab's"),
    ("hf_", 30, "a token of Hugging Face's"),
    ("npm_", 30, "a token of npm's"),
    ("pypi-AgE", 40, "a token of PyPI's"),
    ("rk_live_", 16, "a key of Stripe's"),
    ("sk_live_", 16, "a key of Stripe's"),
    ("whsec_", 24, "a webhook secret of Stripe's"),
    ("sk-ant-", 20, "a key of Anthropic's"),
    ("sk-proj-", 20, "a key of OpenAI's"),
    ("tskey-", 20, "a key of Tailscale's"),
    ("xoxb-", 20, "a token of Slack's"),
    ("xoxp-", 20, "a token of Slack's"),
    ("xapp-", 20, "a token of Slack's"),
    ("hvs.", 20, "a token of Vault's"),
    ("key-", 32, "a key of Mailgun's"),
    ("AGE-SECRET-KEY-1", 40, "a key of age's"),
];

fn is_token(value: &str, (prefix, least, _): &(&str, usize, &str)) -> bool {
    let Some(rest) = value.strip_prefix(prefix) else {
        return false;
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    rest.len() >= *least && rest.chars().all(fits)
}

/// Whether the value is `scheme://user:password@host`, with any scheme.
fn has_password(value: &str) -> bool {
    password_of(value).is_some_and(is_secret_value)
}

fn password_of(value: &str) -> Option<&str> {
    let (scheme, rest) = value.split_once("://")?;
    let is_scheme = scheme
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c));
    let authority = rest.split(['/', '?', '#', ' ']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    is_scheme.then_some(password)
}

/// The last word of a secret's name ends with one of these.
const WORDS: [&str; 11] = [
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "TOKEN",
    "APIKEY",
    "PASSWORT",
    "CREDENTIALS",
    "SECRETKEY",
    "PRIVATEKEY",
    "ENCRYPTIONKEY",
];

/// Last words that must match completely, since they are too short.
const SHORT_WORDS: [&str; 3] = ["PASS", "PWD", "PW"];

/// The words before a last word `KEY` that make it a secret.
const SECRET_KEYS: [&str; 12] = [
    "API",
    "SECRET",
    "PRIVATE",
    "ACCESS",
    "ENCRYPTION",
    "MASTER",
    "SIGNING",
    "AUTH",
    "APP",
    "JWT",
    "SESSION",
    "LICENSE",
];

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let mut words = name
        .rsplit(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let last = words.next().unwrap_or_default();
    let before = words.next();
    let is_word = WORDS.iter().any(|word| last.ends_with(word));
    let is_short = SHORT_WORDS.contains(&last) && before.is_some();
    let is_key = last == "KEY" && before.is_some_and(|before| SECRET_KEYS.contains(&before));
    let is_base = (before, last) == (Some("KEY"), "BASE");
    is_word || is_short || is_key || is_base
}

/// Whether the value is neither a switch, nor the location of the secret, nor a template, nor a hash.
fn is_secret_value(value: &str) -> bool {
    const SWITCHES: [&str; 13] = [
        "", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null", "required",
        "optional",
    ];
    let lower = value.to_ascii_lowercase();
    let is_switch = SWITCHES.contains(&lower.as_str());
    let is_place = value.starts_with(['/', '.', '~'])
        || ["file:", "http://", "https://", "vault:", "op://"]
            .iter()
            .any(|scheme| lower.starts_with(scheme));
    // Another program fills in the template.
    let is_template = value.starts_with("{{") && value.ends_with("}}");
    !is_switch && !is_place && !is_template && !is_hash(value)
}

/// Whether the value is a password hash, in the notation of crypt(3) or PHC: the password cannot be read from it.
fn is_hash(value: &str) -> bool {
    const HASHES: [&str; 9] = [
        "$argon2", "$2a$", "$2b$", "$2y$", "$5$", "$6$", "$y$", "$scrypt$", "$pbkdf2",
    ];
    HASHES.iter().any(|hash| value.starts_with(hash))
}

fn finding(service: &ComposeService<'_>, variable: &Variable<'_>, secret: &Secret) -> Finding {
    let Variable {
        name,
        place,
        scalar,
        ..
    } = variable;
    let (severity, what) = match secret {
        Secret::Token(what) => (Severity::Critical, (*what).to_owned()),
        Secret::InAddress => (Severity::High, "an address with a password".to_owned()),
        Secret::Named => (Severity::High, "a secret, judging by its name".to_owned()),
        Secret::Known | Secret::KnownElsewhere | Secret::KnownHere => {
            return known(service, variable, secret);
        }
    };
    let default = match scalar.reference {
        Some(_) => ", as a default",
        None => "",
    };
    let why = format!(
        "{name} holds {what}{default}: every user who reads this file or inspects the container sees it"
    );
    let fix = moved(variable, secret);
    let rule = SecretInEnvironment;
    Finding::new(rule, severity, service, place, why, fix)
        .advised("move it to .env or to a file under secrets:")
}

/// A finding about a value that everybody knows.
fn known(service: &ComposeService<'_>, variable: &Variable<'_>, secret: &Secret) -> Finding {
    const KNOWN: &str = "a value that everybody knows, from examples and lists of passwords";
    let Variable { name, place, .. } = variable;
    let set = set_by(variable);
    let kept = match name.to_ascii_uppercase().contains("PASS") {
        true => ". An account or database that exists keeps the old one until you change it there",
        false => "",
    };
    let (severity, why, advice) = match secret {
        Secret::KnownHere => (
            Severity::Critical,
            format!("{name} gets {KNOWN}: the environment or .env sets it"),
            format!("set it there to what `openssl rand -hex 32` prints{kept}"),
        ),
        Secret::KnownElsewhere => (
            Severity::Low,
            format!(
                "{name} has {KNOWN}, as a default: it is set here, and that is in use wherever it is not"
            ),
            "require it, so that it is set everywhere".to_owned(),
        ),
        _ => {
            let default = match variable.scalar.reference {
                Some(_) => ", as a default",
                None => "",
            };
            (
                Severity::Critical,
                format!("{name} holds {KNOWN}{default}"),
                format!("in .env, set {set} to what `openssl rand -hex 32` prints{kept}"),
            )
        }
    };
    let fix = match secret {
        Secret::KnownHere => None,
        _ => moved(variable, secret),
    };
    let rule = SecretInEnvironment;
    Finding::new(rule, severity, service, place, why, fix).advised(advice)
}

/// The fix that puts a variable in place of the secret.
fn moved(variable: &Variable<'_>, secret: &Secret) -> Option<Fix> {
    let Variable {
        name,
        node,
        scalar,
        is_assignment,
        ..
    } = variable;
    let asked = asked(variable, secret);
    let text = match is_assignment {
        true => format!("{name}={asked}"),
        false => asked,
    };
    Fix::scalar(node, scalar, &text)
}

/// The variable of `.env` that sets the value, or that the fix puts there.
fn set_by(variable: &Variable<'_>) -> String {
    let reference = variable.scalar.reference.as_ref();
    let named = reference.and_then(|reference| defaulted(variable.after_name(&reference.written)));
    named.map_or_else(|| variable_name(&variable.name), ToOwned::to_owned)
}

/// The value with a variable instead of the secret.
fn asked(variable: &Variable<'_>, secret: &Secret) -> String {
    let name = set_by(variable);
    if variable.scalar.reference.is_some() {
        return format!("${{{name}:?}}");
    }
    let value = variable.value();
    match password_of(value).filter(|_| *secret == Secret::InAddress) {
        Some(password) => {
            let asked = format!(":${{{name}_PASSWORD:?}}@");
            value.replacen(&format!(":{password}@"), &asked, 1)
        }
        None => format!("${{{name}:?}}"),
    }
}

/// The variable's name, if the whole value is one variable with a default.
fn defaulted(written: &str) -> Option<&str> {
    let inside = written.strip_prefix("${")?.strip_suffix('}')?;
    let (name, default) = inside.split_once('-')?;
    let name = name.strip_suffix(':').unwrap_or(name);
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (is_name && !default.contains(['$', '}'])).then_some(name)
}

/// The name, changed to one that Compose accepts for a variable.
fn variable_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.chars().map(allowed).collect();
    match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{name}"),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognised_by_name_shape_and_place() {
        let github = format!("ghp_{}", "a1".repeat(18));
        for (name, value, expected) in [
            ("POSTGRES_PASSWORD", "hj3kq9sV", Some(Secret::Named)),
            ("PGPASSWORD", "123456", Some(Secret::Known)),
            ("MINIO_ROOT_PASSWORD", "changeme", Some(Secret::Known)),
            ("GITEA__database__PASSWD", "gitea", Some(Secret::Named)),
            ("RABBITMQ_DEFAULT_PASS", "guest", Some(Secret::Known)),
            ("SECRET_KEY_BASE", "abc", Some(Secret::Named)),
            ("N8N_ENCRYPTION_KEY", "abc", Some(Secret::Named)),
            (
                "ANYTHING",
                github.as_str(),
                Some(Secret::Token("a token of GitHub's")),
            ),
            (
                "DATABASE_URL",
                "postgres://u:p4ss@db/x",
                Some(Secret::InAddress),
            ),
            ("DATABASE_URL", "postgres://u:@db/x", None),
            ("DATABASE_URL", "postgres://u@db/x:y", None),
            ("POSTGRES_PASSWORD", "", None),
            ("POSTGRES_PASSWORD_FILE", "/run/secrets/db", None),
            ("POSTGRES_PASSWORD", "/run/secrets/db", None),
            ("MYSQL_RANDOM_ROOT_PASSWORD", "yes", None),
            ("PASSWORD_MIN_LENGTH", "12", None),
            ("PWD", "app", None),
            ("ADMIN_TOKEN", "$argon2id$v=19$m=65540", None),
            ("API_KEY", "<your key>", None),
            ("API_KEY", "your-api-key", None),
            ("API_KEY", "changeme", Some(Secret::Known)),
            ("OPENAI_API_KEY", "changeme", None),
            ("OPENAI_API_KEY", "dummy-key", None),
            ("SMTP_PASSWORD", "your_app_password", None),
            ("GF_AUTH_GOOGLE_CLIENT_SECRET", "your-client-secret", None),
            ("ADMIN_TOKEN", "your-admin-token", Some(Secret::Known)),
            ("JWT_SECRET", "your-secret-key", Some(Secret::Known)),
            ("COOKIE_SECRET", "<replace me>", Some(Secret::Known)),
            ("COOKIE_SECRET", "{{ cookie_secret }}", None),
            ("DEFAULT_LANGUAGE", "example", None),
            ("DB_PASSWORD_FILE", "changeme", None),
            (
                "STRIPE_PUBLISHABLE_KEY",
                "pk_live_abcdefghijklmnopqrst",
                None,
            ),
            ("VAPID_PUBLIC_KEY", "BNc", None),
            ("BYPASS", "some", None),
            ("OAUTH_TOKEN_URL", "https://id.example/token", None),
            ("GITHUB_TOKEN", "https://id.example/token", None),
        ] {
            assert_eq!(secret(name, value), expected, "{name}={value}");
        }
    }
}
