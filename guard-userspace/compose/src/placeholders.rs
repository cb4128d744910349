//! Recognises passwords that everybody knows: placeholders of examples, default passwords, and the first guesses.

/// Default passwords of images, and first guesses that are no words of [`WORDS`]. In lower case, without punctuation.
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "abc123", "adminadmin", "asdf", "asdfasdf", "asdfghjkl", "bitnami", "elastic", "foobar", "guest", "hunter2",
    "iloveyou", "letmein", "minio", "minioadmin", "mysql", "neo4j", "nextcloud", "postgres", "postgresql", "qwerty",
    "qwertyuiop", "rabbitmq", "redis", "toor", "trustno1", "welcome", "wordpress", "zaq12wsx", "postgresqlpassword",
];

/// The words that examples are made of.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "a", "access", "account", "accesskey", "add", "admin", "administrator", "an", "and", "any", "api", "apikey", "app",
    "at", "auth", "base64", "bit", "bits", "by", "byte", "bytes", "change", "changed", "changeit", "changeme", "char",
    "character", "characters", "chars", "chosen", "code", "cookie", "credentials", "database", "db", "default", "dev",
    "development", "demo", "dummy", "encrypt", "encryption", "enter", "env", "example", "fake", "fill", "for", "foo",
    "from", "generate", "generated", "good", "has", "here", "hex", "hmac", "hs256", "in", "insecure", "insert", "is",
    "it", "jwt", "key", "length", "least", "local", "long", "make", "master", "me", "min", "minimum", "mongo", "must",
    "my", "need", "needs", "new", "not", "of", "one", "only", "openssl", "own", "pass", "passphrase", "password",
    "passwd", "passwort", "pasword", "paste", "placeholder", "please", "postgres", "private", "prod", "production",
    "put", "pw", "pwd", "rand", "random", "real", "redis", "replace", "replaced", "replacement", "root", "safe",
    "salt", "sample", "secret", "secrets", "secure", "secured", "server", "session", "set", "should", "sign",
    "signing", "so", "some", "something", "string", "strong", "sudo", "super", "test", "testing", "that", "the",
    "this", "to", "todo", "token", "unsafe", "update", "use", "user", "username", "using", "value", "very", "web",
    "with", "you", "your",
];

/// A value has one of these words, or it is no placeholder: `my-app` may be anything.
#[rustfmt::skip]
const TELLING: &[&str] = &[
    "admin", "administrator", "accesskey", "apikey", "change", "changed", "changeit", "changeme", "default", "demo",
    "dummy", "example", "fake", "fill", "generate", "insecure", "insert", "key", "pass", "passphrase", "password",
    "passwd", "passwort", "pasword", "paste", "placeholder", "pw", "pwd", "replace", "replaced", "root", "sample",
    "salt", "secret", "secrets", "sudo", "test", "testing", "todo", "token", "unsafe", "user",
];

/// The longest value that is looked at: no example is longer.
const LONGEST: usize = 100;

/// Whether everybody knows the value of a secret.
pub fn is_known(value: &str) -> bool {
    if value.is_empty() || value.len() > LONGEST || !value.is_ascii() {
        return false;
    }
    let lower = value.to_ascii_lowercase();
    // The prefix of OpenAI's keys, which placeholders for them have as well.
    let lower = lower.strip_prefix("sk-").unwrap_or(&lower);
    is_blank(lower) || is_guess(lower) || is_words(lower) || is_words(&plainer(lower))
}

/// Whether the value is a blank to fill in: `<password>`, `your-app-key`, `xxxx`, `****`.
pub fn is_blank(lower: &str) -> bool {
    let is_filler = lower.chars().all(|c| matches!(c, 'x' | '*' | '.' | '-'));
    let is_yours = ["your-", "your_", "your "]
        .iter()
        .any(|your| lower.starts_with(your));
    is_yours || (lower.starts_with('<') && lower.ends_with('>')) || (is_filler && lower.len() > 2)
}

/// Whether the value is a default password, or digits in a row.
fn is_guess(lower: &str) -> bool {
    let letters: String = lower.chars().filter(char::is_ascii_alphanumeric).collect();
    let word = letters.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = letters.len() > 2 && letters.chars().all(|c| c.is_ascii_digit());
    let is_row = "0123456789012345678901234567890".contains(&letters)
        || "09876543210".contains(&letters)
        || letters
            .bytes()
            .all(|b| Some(&b) == letters.as_bytes().first());
    (digits && is_row) || KNOWN.contains(&letters.as_str()) || KNOWN.contains(&word)
}

/// `p@ssw0rd` as `password`.
fn plainer(lower: &str) -> String {
    let plain = |c| match c {
        '@' | '4' => 'a',
        '0' => 'o',
        '$' | '5' => 's',
        '3' => 'e',
        c => c,
    };
    lower.chars().map(plain).collect()
}

/// Whether the value consists of words of examples, with numbers between and behind them:
/// `your-super-secret-jwt-token-with-at-least-32-characters-long`.
fn is_words(lower: &str) -> bool {
    let parts = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let mut is_telling = false;
    for part in &parts {
        let Some(telling) = words(part) else {
            return false;
        };
        is_telling |= telling;
    }
    // `1-2-3` and the like have no words.
    is_telling
}

/// Whether a text is made of words, each perhaps with a number of at most four digits behind it, and one of them is
/// telling. `None`: it is not.
fn words(text: &str) -> Option<bool> {
    // For each offset: whether words end there, and whether one of them is telling.
    let mut ends: Vec<Option<bool>> = vec![None; text.len() + 1];
    *ends.first_mut()? = Some(false);
    for start in 0..text.len() {
        let Some(Some(telling)) = ends.get(start).copied() else {
            continue;
        };
        let rest = text.get(start..)?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let mut reach = |length: usize, is_telling: bool| {
            if let Some(end) = ends.get_mut(start + length) {
                *end = Some(end.unwrap_or(false) | telling | is_telling);
            }
        };
        if (1..=4).contains(&digits) {
            reach(digits, false);
        }
        for word in WORDS.iter().filter(|word| rest.starts_with(**word)) {
            reach(word.len(), TELLING.contains(word));
        }
    }
    ends.pop().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_of_documentation_are_known_in_every_spelling() {
        for value in [
            "your-nextcloud-password",
            "changeme",
            "CHANGE_ME",
            "change-me!",
            "ChangeMe123",
            "changethis",
            "please-change-me",
            "your-secret-key",
            "your_password_here",
            "replace-me",
            "REPLACE_WITH_SECURE_PASSWORD",
            "generate_me_with_openssl_rand_hex_64",
            "secret",
            "supersecret",
            "super_secret_key",
            "password",
            "Password1",
            "P@ssw0rd",
            "s3cret",
            "my-secret-pw",
            "mysecretpassword",
            "YourStrong!Passw0rd",
            "yourStrong(!)Password",
            "admin",
            "admin123",
            "root",
            "example",
            "<password>",
            "123456",
            "12345678",
            "0000",
            "minioadmin",
            "postgres",
            "guest",
            "xxxxxxxx",
            "letmein",
            "sk-xxxx",
            "sk-your-key",
            "your-super-secret-jwt-token-with-at-least-32-characters-long",
            "super-secret-jwt-token-with-at-least-32-characters-long",
            "min-32-byte-long-strong-encryption-key",
            "this_is_a_secret",
            "thisisnotasecret",
        ] {
            assert!(is_known(value), "{value}");
        }
    }

    #[test]
    fn what_only_one_person_knows_is_no_placeholder() {
        for value in [
            "",
            "hj3kq9sV",
            "correct-horse-battery-staple",
            "Tr0ub4dor&3",
            "4f2a9c1e7b",
            "s3cr3t-Zebra-91827",
            "passwordOfTheDuchess77",
            "86400000",
            "31415926",
            "my-app",
            "the-long-one",
            "AbC",
            "tokenizer",
            "sk-live-000-gone",
            "/run/secrets/db",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCY",
            "geheim-ist-es",
            "password12345678901",
            "ключ",
        ] {
            assert!(!is_known(value), "{value}");
        }
    }
}
