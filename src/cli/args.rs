//! Flags that mean the same in every subcommand.

use std::path::PathBuf;

use candlewick::Error;
use candlewick::methods::{PatchSource, SourceModel};
use candlewick::model::LoadOptions;
use candlewick::plot::ScaleOf;
use clap::{Args, ValueEnum};

/// Which model, and how it is run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A hub id, a folder, a `.gguf` file, or `embedded`.
    #[arg(long, short, default_value = "embedded")]
    pub model: String,
    /// Branch, tag or commit of a hub model.
    #[arg(long)]
    pub revision: Option<String>,
    /// A key of config.json that would be refused and that you know to change nothing; results record it. Can be repeated.
    #[arg(long, value_name = "NAME")]
    pub accept_config_key: Vec<String>,
    /// What computes; `cuda` and `metal` need a build with the cargo feature of that name.
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// Number format of weights and stream; on the CPU of matrices alone, with all arithmetic in f32 [default: f32, but on the CPU
    /// matrices that are stored in 16 bits stay so, which gives the same numbers at half the memory].
    #[arg(long)]
    pub dtype: Option<DTypeChoice>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    Cpu,
    Cuda,
    Metal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    F32,
    Bf16,
    F16,
}

/// Which prompts, and what is measured on them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Task")]
pub struct TaskArgs {
    /// A task file (`circuits/*.toml`) or the name of a task that ships with candlewick [default: `embedded` for the embedded
    /// model, else `ioi`].
    #[arg(long, short, conflicts_with = "pairs")]
    pub task: Option<String>,
    /// Your own pairs: CSV, JSON, JSONL or parquet with columns `clean, corrupted, answer, wrong`.
    #[arg(long, value_name = "FILE")]
    pub pairs: Option<PathBuf>,
    /// How many pairs to use [default: the task's, or the whole file of `--pairs`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub n_pairs: Option<u32>,
    /// Which corruption of the task [default: its first].
    #[arg(long, value_name = "NAME")]
    pub corruption: Option<String>,
    /// Only these templates of the task, numbered from 0: prompts of one template align position by
    /// position [default: all; for the embedded model's own task: 0].
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        conflicts_with = "pairs"
    )]
    pub template: Vec<usize>,
    /// Keep pairs whose prompts differ in length, or whose roles are not at the same positions, where the tokens of every role
    /// correspond one to one [default: they are dropped]. Methods that compare position by position refuse such pairs.
    #[arg(long)]
    pub unequal_lengths: bool,
    /// Wraps the prompts in the tokenizer's own chat template.
    #[arg(long)]
    pub chat_template: bool,
    /// The day that a chat template prints, for those that print one.
    #[arg(long, value_name = "YYYY-MM-DD", requires = "chat_template")]
    pub date: Option<String>,
    /// Puts a space in front of the answers of `--pairs` that begin without one [default: as they are written].
    #[arg(long, requires = "pairs")]
    pub answer_space: bool,
    /// Whether a BOS token stands in front; `auto` does what the tokenizer does.
    #[arg(long, default_value = "auto")]
    pub bos: BosChoice,
    /// logit_diff, prob_diff, log_prob, prob, kl, js, rank, top<k> or accuracy [default: the task's].
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// Of the drawn prompts, of random draws, and of the resamples of intervals [default: the task's].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BosChoice {
    Auto,
    Yes,
    No,
}

impl From<BosChoice> for candlewick::task::BosChoice {
    fn from(choice: BosChoice) -> Self {
        match choice {
            BosChoice::Auto => candlewick::task::BosChoice::Auto,
            BosChoice::Yes => candlewick::task::BosChoice::Yes,
            BosChoice::No => candlewick::task::BosChoice::No,
        }
    }
}

/// Another model that values are taken from.
#[derive(Debug, Clone, Args)]
pub struct SourceModelArgs {
    /// Another model of the same shape, whose runs the values that are put in place are of: a hub id, a folder or a `.gguf` file.
    #[arg(long, value_name = "MODEL")]
    pub source_model: Option<String>,
    /// Branch, tag or commit of that model.
    #[arg(long, value_name = "REVISION", requires = "source_model")]
    pub source_revision: Option<String>,
}

impl SourceModelArgs {
    /// Finds it, where there is one; its weights are read later.
    /// # Errors
    /// Those of [`SourceModel::open`].
    pub fn open(&self, options: &LoadOptions) -> Result<Option<SourceModel>, Error> {
        let open = |id| {
            let options = LoadOptions {
                revision: self.source_revision.clone(),
                ..options.clone()
            };
            SourceModel::open(id, &options)
        };
        self.source_model.as_deref().map(open).transpose()
    }

    /// What was chosen, else the same prompt in the other model where there is one.
    pub fn source(&self, chosen: Option<PatchSource>, without: PatchSource) -> PatchSource {
        chosen.unwrap_or(match self.source_model {
            Some(_) => PatchSource::Same,
            None => without,
        })
    }

    /// The model and its revision.
    pub fn named(&self) -> Option<(String, Option<String>)> {
        Some((self.source_model.clone()?, self.source_revision.clone()))
    }
}

/// Where results go.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// All rows, with how they were made: `.parquet`, or `.csv` or `.jsonl` for other programs.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace the results of another command, or a file that is not ours.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub print: PrintArgs,
    /// A row for each pair instead of means with intervals.
    #[arg(long)]
    pub per_example: bool,
}

/// What is printed of a table.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct PrintArgs {
    /// All rows as CSV on stdout, instead of picture and table, and after them those of tables beside it (`metric` tells them apart).
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// The same, a JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// How many of the strongest rows of each component to show; with `--csv` or `--json`, only these.
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Only the grids whose name begins so, such as `resid_pre`.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["csv", "json"])]
    pub panel: Option<String>,
    /// Whether the grids of a picture share one scale.
    #[arg(long, value_name = "WHOSE", default_value = "run", conflicts_with_all = ["csv", "json"])]
    pub scale: ScaleOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// `512MB`, `4GB`, `4G`: powers of ten.
pub fn memory(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: usize = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => return Err("write a size such as `512MB` or `4GB`".into()),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| "write a size such as `512MB` or `4GB`".to_string())?;
    let bytes = number * unit as f64;
    if bytes.is_finite() && (1e6..1e15).contains(&bytes) {
        Ok(bytes as usize)
    } else {
        Err("the memory must be at least 1MB".into())
    }
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn sizes_are_read_in_powers_of_ten() {
        assert_eq!(memory("512MB"), Ok(512_000_000));
        assert_eq!(memory("1.5g"), Ok(1_500_000_000));
        for text in ["", "MB", "12 parsecs", "-1GB", "1", "nan", "inf"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }
}
