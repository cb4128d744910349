//! The finding of a rule.

use super::{
    fix::Fix,
    rule::{Rule, Severity},
    service::ComposeService,
    source::Place,
};

/// A rule's finding about a service.
pub struct Finding {
    pub rule: Rule,
    pub severity: Severity,
    pub place: Place,
    /// Several if they share the place.
    pub services: Vec<String>,
    /// The service runs with any of these profiles. Empty: it always runs.
    pub profiles: Vec<String>,
    pub why: String,
    /// What to do, in words: where no edit is safe, or besides the edit.
    pub advice: Option<String>,
    pub fix: Option<Fix>,
    /// The line of the service that accepts the finding, if what the fix closes may be meant for everybody.
    pub accept: Option<String>,
}

impl Finding {
    /// A finding in one service.
    pub fn new(
        rule: Rule,
        severity: Severity,
        service: &ComposeService<'_>,
        place: &Place,
        why: impl Into<String>,
        fix: Option<Fix>,
    ) -> Self {
        Self {
            rule,
            severity,
            place: place.clone(),
            services: vec![service.name.to_owned()],
            profiles: service.profiles.clone(),
            why: why.into(),
            advice: None,
            fix,
            accept: None,
        }
    }

    /// The finding with what to do, in words.
    pub fn advised(self, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { advice, ..self }
    }
}
