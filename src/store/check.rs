//! What a start-up check found.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A promise is weaker than stated.
    Warning,
    /// A promise is broken: do not start.
    Error,
}

/// One unsafe setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The setting's name, stable across versions.
    pub setting: &'static str,
    /// What was found and what it breaks.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.setting, self.problem, self.cure)
    }
}

/// All that a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// A report without findings.
    #[must_use]
    pub const fn new() -> Self {
        Self { findings: Vec::new() }
    }

    /// Adds an error: do not start.
    pub fn error(&mut self, setting: &'static str, problem: impl Into<String>, cure: impl Into<String>) {
        self.add(Severity::Error, setting, problem.into(), cure.into());
    }

    /// Adds a warning: a promise is weaker than stated.
    pub fn warning(&mut self, setting: &'static str, problem: impl Into<String>, cure: impl Into<String>) {
        self.add(Severity::Warning, setting, problem.into(), cure.into());
    }

    fn add(&mut self, severity: Severity, setting: &'static str, problem: String, cure: String) {
        self.findings.push(Finding { severity, setting, problem, cure });
    }

    /// Adds what another report found.
    pub fn extend(&mut self, other: Self) {
        self.findings.extend(other.findings);
    }

    /// Everything found.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The findings that forbid a start.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Error)
    }

    /// The findings that weaken a promise.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Warning)
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }

    /// Whether a finding of this name is there.
    #[must_use]
    pub fn names(&self, setting: &str) -> bool {
        self.findings.iter().any(|finding| finding.setting == setting)
    }
}
