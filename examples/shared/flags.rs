//! Flags. Each of them may come from the environment instead, where the example has a prefix there: `--group-protocol` is
//! `SERVICE_GROUP_PROTOCOL`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

/// Name, what it takes, and what it means.
pub type Flag = (&'static str, &'static str, &'static str);

/// What was given. A value from the command line counts more than one from the environment.
pub struct Given {
    values: BTreeMap<&'static str, String>,
    environment: Option<&'static str>,
}

impl Given {
    /// From these words of the command line, and from the environment where it has a prefix. `None` where help is asked for.
    pub fn read(
        flags: &[Flag],
        environment: Option<&'static str>,
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, String> {
        use lexopt::prelude::{Long, Short, ValueExt as _};
        let mut values = BTreeMap::new();
        for (name, ..) in flags {
            if let Some(value) = environment.and_then(|prefix| std::env::var(variable(prefix, name)).ok()) {
                values.insert(*name, value);
            }
        }
        let see = "--help shows all flags";
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(arg) = parser.next().map_err(|e| format!("{e}; {see}"))? {
            let name = match arg {
                Long("help") | Short('h') => return Ok(None),
                Long(name) => name.to_owned(),
                other => return Err(format!("{}; {see}", other.unexpected())),
            };
            let known = flags.iter().find(|(known, ..)| *known == name);
            let (name, ..) = known.ok_or_else(|| format!("there is no flag --{name}; {see}"))?;
            let value = parser.value().and_then(|value| value.string()).map_err(|e| format!("--{name}: {e}; {see}"))?;
            values.insert(*name, value);
        }
        Ok(Some(Self { values, environment }))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn needed(&self, name: &str, example: &str) -> Result<String, String> {
        let instead = || self.environment.map(|prefix| format!(", or set {}", variable(prefix, name)));
        let missing =
            || format!("--{name} is missing; give it, such as --{name} {example}{}", instead().unwrap_or_default());
        self.text(name).map(str::to_owned).ok_or_else(missing)
    }

    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let number = value.parse().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| format!("--{name} {value}: give a whole number from {least} to {most}"))
    }

    /// A duration given in whole milliseconds.
    pub fn millis(&self, name: &str, least: u64) -> Result<Option<Duration>, String> {
        Ok(self.number(name, least, 86_400_000)?.map(Duration::from_millis))
    }

    pub fn percent(&self, name: &str) -> Result<f64, String> {
        let Some(value) = self.text(name) else { return Ok(0.0) };
        let percent = value.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
        percent.ok_or_else(|| format!("--{name} {value}: give a number from 0 to 100, such as 2.5"))
    }

    pub fn one_of<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: T) -> Result<T, String> {
        let Some(value) = self.text(name) else { return Ok(default) };
        let found = choices.iter().find(|(choice, _)| *choice == value).map(|(_, found)| *found);
        found.ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            format!("--{name} {value}: choose one of {}", names.join(", "))
        })
    }
}

fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", name.to_uppercase().replace('-', "_"))
}

/// One line for each flag.
pub fn describe(flags: &[Flag]) -> String {
    flags.iter().map(|(name, takes, meaning)| format!("  {:<31} {meaning}\n", format!("--{name} {takes}"))).collect()
}
