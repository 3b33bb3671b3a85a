//! `candlewick check`: whether a model is the model that its files describe, and the table of parity in the docs.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::check::{
    Finding, Gap, IN_CANDLE_TRANSFORMERS, TOLERANCE, check, compare, next_tokens, worst,
};
use candlewick::hooks::Kind;
use candlewick::model::{LoadOptions, Loaded, ModelSpec, load, open, read_spec};
use candlewick::text::visible;
use clap::Args;

use super::args::{DTypeChoice, DeviceChoice, ModelArgs};
use super::plan::{is_plan, prove};
use super::{Context, load_options};

/// What lies beside a model that somebody ran another implementation on.
const REFERENCE: &str = "reference.safetensors";

/// Check models: is the config understood, are all weights there and finite, does the tokenizer fit, do sweeps agree with whole
/// forward passes; and, where a file of reference activations lies beside the model, does every hook agree with it.
///
/// Prints a verdict a line and exits with 1 if one of them is a failure. Of a plan (`.toml`) it says whether every run can be done on
/// this machine without a network.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick check
  candlewick check embedded --text then")]
pub struct CheckArgs {
    /// Hub ids, folders, `.gguf` files, or `embedded`.
    #[arg(value_name = "MODEL", default_value = "embedded")]
    pub models: Vec<String>,
    /// Activations that another implementation computed [default: `reference.safetensors` in the model's folder, if it is there].
    #[arg(long, value_name = "FILE")]
    pub reference: Option<PathBuf>,
    /// Also show the likeliest tokens after this text.
    #[arg(long)]
    pub text: Option<String>,
    /// Print the page of the docs instead: what each model has in force, and its largest difference to its reference at each hook.
    #[arg(long, conflicts_with_all = ["reference", "text"])]
    pub markdown: bool,
    /// Branch, tag or commit of a hub model.
    #[arg(long)]
    pub revision: Option<String>,
    /// A key of config.json that would be refused and that you know to change nothing. Can be repeated.
    #[arg(long, value_name = "NAME")]
    pub accept_config_key: Vec<String>,
    /// What computes; `cuda` and `metal` need a build with the cargo feature of that name.
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// Number format of weights and stream; on the CPU of matrices alone, with all arithmetic in f32 [default: f32, but on the CPU
    /// matrices that are stored in 16 bits stay so].
    #[arg(long)]
    pub dtype: Option<DTypeChoice>,
}

impl CheckArgs {
    fn formats(&self) -> String {
        match self.dtype {
            Some(dtype) => format!("{dtype:?}").to_lowercase(),
            None => "f32".to_string(),
        }
    }
}

pub fn run(args: &CheckArgs, ctx: &Context) -> anyhow::Result<()> {
    if let [plan] = &args.models[..]
        && is_plan(plan)
    {
        return prove(Path::new(plan), ctx);
    }
    let mut out = io::stdout().lock();
    if args.markdown {
        return Ok(out.write_all(page(args)?.as_bytes())?);
    }
    let mut failed = Vec::new();
    for (index, model) in args.models.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        if !check_one(model, args, &mut out)? {
            failed.push(visible(model));
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid(format!("failed: {}", failed.join(", "))).into())
    }
}

fn options(model: &str, args: &CheckArgs) -> anyhow::Result<LoadOptions> {
    load_options(&ModelArgs {
        model: model.to_string(),
        revision: args.revision.clone(),
        accept_config_key: args.accept_config_key.clone(),
        device: args.device,
        dtype: args.dtype,
    })
}

/// Prints the verdicts of one model; whether all of them are good.
fn check_one(model: &str, args: &CheckArgs, out: &mut impl Write) -> anyhow::Result<bool> {
    let options = options(model, args)?;
    writeln!(out, "{}", visible(model))?;
    let mut all_passed = true;
    let mut say = |what: &str, passed: bool, seen: &str, out: &mut dyn Write| {
        all_passed &= passed;
        let verdict = if passed { "ok" } else { "FAILED" };
        writeln!(out, "  {what:20}  {verdict:6}  {}", visible(seen))
    };
    // Each stage reads what the next one needs, so the first that fails is the last that is tried.
    let spec = match read_spec(model, &options) {
        Ok(spec) => spec,
        Err(error) => {
            say("config", false, &super::advised(&error), out)?;
            return Ok(false);
        }
    };
    say("config", true, &described(&spec), out)?;
    let opened = match open(model, &options) {
        Ok(opened) => opened,
        Err(error) => {
            say("tokenizer", false, &error.to_string(), out)?;
            return Ok(false);
        }
    };
    let loaded = match opened.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            say("weights", false, &error.to_string(), out)?;
            return Ok(false);
        }
    };
    let weights = format!(
        "{}, {:.1} MB as {}, all finite, none missing, none left over",
        loaded.model.origin.storage,
        loaded.model.weights.bytes() as f64 / 1e6,
        loaded.model.number_formats()
    );
    say("weights", true, &weights, out)?;
    for Finding { what, passed, seen } in check(&loaded)? {
        say(what, passed, &seen, out)?;
    }
    let reference = args.reference.clone().or_else(|| beside(model));
    if let Some(path) = &reference {
        match compare(&loaded.model, path) {
            Ok(gaps) => say_gaps(&gaps, &mut say, out)?,
            Err(error) => say("reference", false, &error.to_string(), out)?,
        }
    }
    if let Some(text) = &args.text {
        writeln!(
            out,
            "  {:20}          {}",
            "next token",
            visible(&likeliest(&loaded, text)?)
        )?;
    }
    writeln!(
        out,
        "  {:20}          {}",
        "family",
        visible(&elsewhere(&spec.family))
    )?;
    Ok(all_passed)
}

fn described(spec: &ModelSpec) -> String {
    format!(
        "{}: {} layers, d_model {}, d_mlp {}, {} tokens, {} positions; {}",
        spec.family,
        spec.n_layers,
        spec.d_model,
        spec.d_mlp,
        spec.d_vocab,
        spec.n_ctx,
        spec.features().join(", ")
    )
}

fn say_gaps<W: Write>(
    gaps: &[Gap],
    say: &mut impl FnMut(&str, bool, &str, &mut dyn Write) -> io::Result<()>,
    out: &mut W,
) -> io::Result<()> {
    for gap in worst(gaps) {
        let seen = format!(
            "largest relative difference {:.1e}, at {}",
            gap.relative, gap.place
        );
        say(&gap.what, gap.relative <= TOLERANCE, &seen, out)?;
    }
    Ok(())
}

fn beside(model: &str) -> Option<PathBuf> {
    Some(Path::new(model).join(REFERENCE)).filter(|path| path.is_file())
}

fn likeliest(loaded: &Loaded, text: &str) -> anyhow::Result<String> {
    let tokens = next_tokens(loaded, text, 5)?;
    let shown = tokens
        .iter()
        .map(|(token, p)| format!("`{token}` {:.0}%", p * 100.0));
    Ok(shown.collect::<Vec<_>>().join(", "))
}

/// What else this family is held against, on tiny models.
fn elsewhere(family: &str) -> String {
    let theirs = if IN_CANDLE_TRANSFORMERS.contains(&family) {
        "Hugging Face transformers and candle-transformers"
    } else {
        "Hugging Face transformers"
    };
    format!("`{family}` is tested against {theirs} on tiny models: docs/families.md")
}

/// One model of the page.
struct Row {
    name: String,
    spec: ModelSpec,
    worst: Vec<(String, f32)>,
}

/// `docs/families.md`.
fn page(args: &CheckArgs) -> anyhow::Result<String> {
    let mut rows = Vec::with_capacity(args.models.len());
    for model in &args.models {
        let loaded = load(model, &options(model, args)?)?;
        let path = Path::new(model).join(REFERENCE);
        let gaps = compare(&loaded.model, &path)?;
        let worst = worst(&gaps);
        rows.push(Row {
            name: Path::new(model)
                .file_name()
                .map_or(model.clone(), |name| name.to_string_lossy().into_owned()),
            spec: loaded.model.spec,
            worst: worst
                .into_iter()
                .map(|gap| (gap.what.clone(), gap.relative))
                .collect(),
        });
    }
    rows.sort_by(|a, b| (&a.spec.family, &a.name).cmp(&(&b.spec.family, &b.name)));
    let mut page = String::from(INTRODUCTION);
    writeln!(
        page,
        "| model | family | what is in force | candle-transformers |\n|---|---|---|---|"
    )?;
    for Row { name, spec, .. } in &rows {
        let theirs = if IN_CANDLE_TRANSFORMERS.contains(&spec.family.as_str()) {
            "yes"
        } else {
            ""
        };
        let features = spec.features().join(", ");
        writeln!(
            page,
            "| {} | {} | {} | {theirs} |",
            visible(name),
            spec.family,
            features
        )?;
    }
    writeln!(page, "{}", DIFFERENCES.replace("{dtype}", &args.formats()))?;
    let columns = columns(&rows);
    writeln!(page, "| model | {} | largest |", columns.join(" | "))?;
    writeln!(page, "|---|{}---|", "---|".repeat(columns.len()))?;
    for row in &rows {
        let cell = |column: &String| {
            let gap = row.worst.iter().find(|(what, _)| what == column);
            gap.map_or(String::new(), |(_, gap)| format!("{gap:.0e}"))
        };
        let largest = row.worst.iter().fold(0f32, |most, (_, gap)| most.max(*gap));
        let cells: Vec<String> = columns.iter().map(cell).collect();
        writeln!(
            page,
            "| {} | {} | {largest:.1e} |",
            visible(&row.name),
            cells.join(" | ")
        )?;
    }
    Ok(page)
}

/// Everything that some reference holds, in the order of the forward pass.
fn columns(rows: &[Row]) -> Vec<String> {
    let order = |name: &str| {
        Kind::ALL
            .iter()
            .position(|kind| kind.short() == name)
            .unwrap_or(Kind::ALL.len())
    };
    let mut names: Vec<String> = rows
        .iter()
        .flat_map(|row| row.worst.iter().map(|(what, _)| what.clone()))
        .collect();
    names.sort_by_key(|name| (order(name), name.clone()));
    names.dedup();
    names
}

const INTRODUCTION: &str = "\
# Families and parity

<!-- Generated: `cargo run --release -- check --markdown tests/fixtures/*-tiny* > docs/families.md` -->

Each family is a description in `src/model/families/`; there is one forward pass. The models below are tiny and random, with settings
on purpose that are easy to get wrong: windows shorter than the prompts, heads that are not `d_model / n_heads` wide, rope scaling in
force, biases and ties both ways. Their activations were computed by Hugging Face transformers (eager attention, f32), those of the
folders without `-random` by `tests/fixtures/generate.py`. `tests/families.rs` holds every one of them below 1e-4, and holds the
logits of the families that candle-transformers has (last column) against its model too.

";

const DIFFERENCES: &str = "
Largest difference at each hook over all layers and prompts, relative to the largest value of the same tensor, dtype {dtype}. Hooks
are under their short names (`candlewick hooks`); an empty cell means that the reference does not hold that hook.
";
