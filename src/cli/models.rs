//! `candlewick models`: which families we read, and what the Hugging Face cache holds.

use std::io::Write;

use candlewick::model::families;
use candlewick::model::hub::{CachedModel, HubSettings, cached_models};
use candlewick::text::visible;
use clap::Args;

/// List the families that candlewick reads, and the models in the Hugging Face cache.
///
/// First the families with published models of each; then a row a cached model: size on disk, family, id with its revisions, and why
/// it cannot be loaded if that is so.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick models")]
pub struct ModelsArgs {}

pub fn run(_args: &ModelsArgs) -> anyhow::Result<()> {
    let settings = HubSettings::from_env();
    let models = cached_models(&settings);
    let mut out = std::io::stdout().lock();
    writeln!(out, "families, and models of them on the hub:")?;
    for family in families::FAMILIES {
        writeln!(out, "  {:12} {}", family.name, family.examples.join(", "))?;
    }
    writeln!(out, "embedded: `--model embedded`, part of this program")?;
    writeln!(
        out,
        "cache:    {}",
        visible(&settings.cache.display().to_string())
    )?;
    if models.is_empty() {
        writeln!(
            out,
            "          nothing is cached; `candlewick fetch org/name` downloads a model"
        )?;
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "{:>9}  {:10}  model", "size", "family")?;
    for model in &models {
        let family = model.family.as_deref().unwrap_or("-");
        writeln!(
            out,
            "{:>9}  {:10}  {}",
            size(model.bytes),
            visible(family),
            visible(&described(model))
        )?;
    }
    Ok(())
}

fn described(model: &CachedModel) -> String {
    let revisions: Vec<String> = model
        .revisions
        .iter()
        .map(|(name, commit)| {
            if name == commit {
                commit.chars().take(8).collect()
            } else {
                format!("{name} {}", commit.chars().take(8).collect::<String>())
            }
        })
        .collect();
    let mut text = format!("{} ({})", model.id, revisions.join(", "));
    if let Some(refusal) = &model.refusal {
        text.push_str(&format!(": not supported, {refusal}"));
    }
    text
}

/// A size as people read it, in powers of 1000 as disks are sold.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(98_362_432), "98.4 MB");
        assert_eq!(size(1_500_000_000_000_000), "1500.0 TB");
    }
}
