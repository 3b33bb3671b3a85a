//! One measurement from flags to a file: what every measuring command shares.
//!
//! A command says what it asks for ([`Ask`]); here its flags are held against what acts in the mode that was chosen, everything
//! that can be wrong is found before the weights are read, and then the method is planned, measured, sharded or merged.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::methods::{
    Keeping, Method, Plan, Running, Subject, VerifyOptions, Watch, check, measure, measure_shard,
    merge, plan, work_plan,
};
use candlewick::model::{EMBEDDED, LoadOptions, Model, ModelSpec, Tokenizer};
use candlewick::scores::{Detail, Scores, Shard};
use candlewick::task::Task;
use candlewick::text::duration;
use clap::Args;

use super::args::{ModelArgs, OutputArgs, TaskArgs, memory};
use super::destination::{check_not_read, destination};
use super::open::{load_options, open_model, open_task, open_texts};
use super::plan::Stage;
use super::{Context, show};

/// The flags of every measuring command.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub running: RunningArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How it is run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Running")]
pub struct RunningArgs {
    /// Memory for activations, such as `512MB` or `4GB` [default: a quarter of what is free].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<usize>,
    /// Print what would be run, and what it would cost.
    #[arg(long)]
    pub dry_run: bool,
    /// Hold the K strongest estimates and K random ones against the exact effect (for methods that estimate one).
    #[arg(long, value_name = "K")]
    pub verify: Option<usize>,
    /// Only this slice of the work, such as `1/4`; `candlewick merge` makes one table of all slices.
    #[arg(long, value_name = "I/N", conflicts_with = "dry_run")]
    pub shard: Option<Shard>,
}

/// What a command asks for.
pub trait Ask {
    /// The result file where nobody names one.
    fn default_out(&self) -> &'static str;

    /// What was chosen, and which of the command's own flags act then. Flags of [`CommonArgs`] act unless they are named.
    fn mode(&self) -> Mode;

    /// A file of lines that are read in the place of a task's prompts.
    fn texts(&self) -> Option<&Path> {
        None
    }

    /// Other files that it reads, which its result must not replace.
    fn reads(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Prompts of the command's own, in the place of a task's.
    /// # Errors
    /// Those of reading and tokenising them.
    fn task(&self, _tokenizer: &Tokenizer, _spec: &ModelSpec) -> anyhow::Result<Option<Task>> {
        Ok(None)
    }

    /// The method, with everything that can be checked without weights and without a task's prompts checked.
    /// # Errors
    /// Flags that do not go together.
    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>>;

    /// Joint patches behind a bound on what verification missed.
    fn bound_draws(&self) -> usize {
        0
    }

    /// Other files than the result: those that will be written can be, those that are read are what they should be.
    /// # Errors
    /// What is wrong with them.
    fn check_files(&self, _spec: &ModelSpec) -> anyhow::Result<()> {
        Ok(())
    }

    /// What else is done with the table before it is written (`--graph`).
    /// # Errors
    /// Those of writing.
    fn finish(&self, _scores: &mut Scores, _spec: &ModelSpec) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A mode of a command: what was chosen, as it is typed, and the flags that do something then.
#[derive(Debug, Clone)]
pub struct Mode {
    pub name: String,
    pub acts: Vec<&'static str>,
    /// Common flags that do nothing in this mode.
    pub idle: Vec<&'static str>,
    /// What to do instead, for flags that one could expect to act.
    pub instead: Vec<(&'static str, &'static str)>,
}

impl Mode {
    pub fn new(name: impl Into<String>, acts: &[&'static str]) -> Self {
        Mode {
            name: name.into(),
            acts: acts.to_vec(),
            idle: Vec::new(),
            instead: Vec::new(),
        }
    }

    /// More flags that act.
    pub fn and(mut self, acts: &[&'static str]) -> Self {
        self.acts.extend(acts);
        self
    }

    pub fn idle(mut self, flags: &[&'static str]) -> Self {
        self.idle.extend(flags);
        self
    }

    /// What to do instead of typing a flag that does nothing in this mode.
    pub fn instead(mut self, flag: &'static str, remedy: &'static str) -> Self {
        self.instead.push((flag, remedy));
        self
    }

    /// Questions of `--questions FILE` are asked, and no task's.
    pub fn of_questions(self) -> Self {
        self.idle(&[
            "task",
            "pairs",
            "corruption",
            "template",
            "unequal_lengths",
            "answer_space",
            "metric",
            "verify",
        ])
        .instead("task", "give `--questions FILE`")
        .instead("pairs", "give `--questions FILE`")
    }

    /// Refuses a flag that was typed and would do nothing.
    /// # Errors
    /// [`Error::Invalid`] naming it.
    pub fn check(&self, typed: &[String]) -> Result<(), Error> {
        let acts = |flag: &String| {
            let common = COMMON.contains(&flag.as_str()) && !self.idle.contains(&flag.as_str());
            common || self.acts.contains(&flag.as_str())
        };
        let Some(flag) = typed.iter().find(|flag| !acts(flag)) else {
            return Ok(());
        };
        let remedy = self.instead.iter().find(|(of, _)| of == flag);
        Err(Error::invalid(format!(
            "`--{}` does nothing with {}; {}",
            flag.replace('_', "-"),
            self.name,
            remedy.map_or("leave it out", |(_, remedy)| remedy)
        )))
    }
}

/// The flags that act in every mode, unless it says otherwise.
pub const COMMON: &[&str] = &[
    "accept_config_key",
    "answer_space",
    "bos",
    "chat_template",
    "color",
    "corruption",
    "csv",
    "date",
    "device",
    "dry_run",
    "dtype",
    "force",
    "json",
    "memory",
    "metric",
    "model",
    "n_pairs",
    "out",
    "pairs",
    "panel",
    "per_example",
    "quiet",
    "revision",
    "scale",
    "seed",
    "shard",
    "task",
    "template",
    "threads",
    "top",
    "unequal_lengths",
    "verify",
];

/// What a method is made for.
pub struct Asked<'a> {
    pub tokenizer: &'a Tokenizer,
    pub spec: &'a ModelSpec,
    pub task: &'a Task,
    pub task_args: &'a TaskArgs,
    /// How the model is loaded.
    pub options: &'a LoadOptions,
}

/// Measures what a command asks for, or plans it, or a shard of it, or merges shards of it.
pub fn run(ask: &dyn Ask, common: &CommonArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut mode = ask.mode();
    if ask.texts().is_some() {
        let alone = "a line of text is a prompt alone; leave it out";
        mode = mode
            .idle(&["unequal_lengths"])
            .instead("unequal_lengths", alone);
    }
    mode.check(&ctx.typed)?;
    let merging = ctx.merging.as_ref();
    let shard = common.running.shard.filter(|_| merging.is_none());
    let mut options = load_options(&common.model)?;
    options.show_download_progress &= !ctx.quiet;
    options.offline |= ctx.desk.as_ref().is_some_and(|desk| desk.offline);
    let stage = ctx.desk.as_ref().map(|desk| desk.stage);
    // Everything that can be wrong is found before the weights are read.
    let out = if common.running.dry_run
        || matches!(stage, Some(Stage::Check | Stage::Cost | Stage::Describe))
    {
        PathBuf::new()
    } else {
        let default = match shard {
            None => ask.default_out().to_string(),
            Some(Shard { index, count }) => {
                let name = ask.default_out().trim_end_matches(".parquet");
                format!("{name}.shard-{index}-of-{count}.parquet")
            }
        };
        let out = destination(&common.output, &default, ctx)?;
        let read = ask.reads().into_iter().chain(ask.texts());
        check_not_read(&out, read.chain(common.task.pairs.as_deref()))?;
        out
    };

    let id = &common.model.model;
    let unread = open_model(&common.model, &options, ctx)?;
    let (tokenizer, spec) = unread.parts()?;
    let task = match (ask.task(&tokenizer, &spec)?, ask.texts()) {
        (Some(task), _) => task,
        (None, Some(path)) => open_texts(path, &common.task, &tokenizer, spec.n_ctx)?,
        (None, None) => open_task(&common.task, &tokenizer, spec.n_ctx, id == EMBEDDED)?,
    };
    if matches!(stage, None | Some(Stage::Check)) {
        ctx.warn_of(&task);
    }
    let method = ask.method(&Asked {
        tokenizer: &tokenizer,
        spec: &spec,
        task: &task,
        task_args: &common.task,
        options: &options,
    })?;
    let method = &*method;
    check(method, &spec, &task)?;
    ask.check_files(&spec)?;
    let running = running(common, ask, shard);
    if running.verify.is_some() && method.exact(&[]).is_none() {
        return Err(Error::invalid(format!(
            "`--verify` holds estimates against exact effects, and {} has none to be held against; leave it out",
            ask.mode().name
        ))
        .into());
    }
    if stage == Some(Stage::Check) {
        return Ok(());
    }
    if let Some(desk) = ctx.desk.as_ref().filter(|_| stage == Some(Stage::Cost)) {
        // The weights need not be read, nor be here.
        let model = &Model::stand_in(&spec, &options.device, &task.tokens())?;
        let counted = plan(Subject { model, task: &task }, method, &running)?;
        *desk.plan.lock().expect("no run panicked with it") = Some(counted);
        return Ok(());
    }
    let progress = ctx.progress();
    let model = unread.load(ctx)?;
    let on = Subject {
        model: &model,
        task: &task,
    };
    if let Some(desk) = ctx.desk.as_ref().filter(|_| stage == Some(Stage::Describe)) {
        let described = work_plan(on, method, &running)?;
        *desk.work.lock().expect("no run panicked with it") = Some(described);
        return Ok(());
    }
    if common.running.dry_run {
        let plan = plan(on, method, &running)?;
        let has_other = method.settings().get("source_model").is_some();
        return print_plan(&plan, &model, has_other);
    }
    let keeping = Keeping::beside(&out);
    let watch = Watch {
        progress: &progress,
        keeping: Some(&keeping),
    };
    if let Some(shard) = shard {
        let note = measure_shard(on, method, &running, &watch, &out, &ctx.command)?;
        keeping.remove()?;
        if !ctx.quiet && ctx.desk.is_none() {
            println!(
                "shard {shard} in {:.1} s: {}; `candlewick merge` makes the table of all {}",
                note.seconds,
                out.display(),
                shard.count
            );
        }
        return Ok(());
    }
    let mut scores = match merging {
        Some(merging) => merge(on, method, &running, &merging.shards, &watch)?,
        None => measure(on, method, &running, &watch)?,
    };
    ask.finish(&mut scores, &model.spec)?;
    show::write(&mut scores, &out, &common.output, ctx)?;
    keeping.remove()?;
    if let Some(desk) = &ctx.desk {
        *desk.scores.lock().expect("no run panicked with it") = Some(scores);
        return Ok(());
    }
    show::tell(&scores, &out, &common.output, ctx)
}

fn running(common: &CommonArgs, ask: &dyn Ask, shard: Option<Shard>) -> Running {
    Running {
        memory: common.running.memory,
        detail: if common.output.per_example {
            Detail::PerExample
        } else {
            Detail::Mean
        },
        shard,
        verify: common.running.verify.map(|k| VerifyOptions {
            k,
            bound_draws: ask.bound_draws(),
        }),
        ..Running::default()
    }
}

/// What would be run, and what it costs, here also the weights of another model of the same shape.
pub fn print_plan(plan: &Plan, model: &Model, has_other: bool) -> anyhow::Result<()> {
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let mut out = io::stdout().lock();
    let cost = &plan.cost;
    writeln!(out, "pairs                {}", plan.pairs)?;
    writeln!(out, "cells                {}", plan.cells)?;
    if cost.variants > 0 {
        writeln!(
            out,
            "variants             {} ({} cannot reach the answer)",
            cost.variants, cost.without_effect
        )?;
    }
    writeln!(out, "forward-equivalents  {:.1}", cost.passes + cost.packed)?;
    writeln!(
        out,
        "memory               {:.0} MB weights{}, {:.0} MB activations{}",
        megabytes(model.weights.bytes()),
        if has_other {
            ", as much again for the source model's"
        } else {
            ""
        },
        megabytes(cost.bytes),
        match cost.held {
            0 => String::new(),
            held => format!(", {:.0} MB for what is fitted", megabytes(held)),
        }
    )?;
    writeln!(out, "parts                {}", plan.units)?;
    if plan.verified > 0 {
        writeln!(
            out,
            "measured exactly     {} cells, at the end",
            plan.verified
        )?;
    }
    writeln!(out, "estimated time       about {}", duration(plan.seconds))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_does_nothing_is_named() {
        let mode = Mode::new("`--method atp`", &["sites"]).idle(&["metric"]);
        let typed =
            |flags: &[&str]| mode.check(&flags.iter().map(|f| f.to_string()).collect::<Vec<_>>());
        assert!(typed(&["sites", "model"]).is_ok());
        let told = mode.clone().instead("steps", "take `--draws`");
        let message = told.check(&["steps".to_string()]).unwrap_err().to_string();
        assert!(message.ends_with("; take `--draws`"), "{message}");
        for flags in [["steps"], ["metric"]] {
            let message = typed(&flags).unwrap_err().to_string();
            assert!(
                message.contains("does nothing with `--method atp`"),
                "{message}"
            );
        }
    }
}
