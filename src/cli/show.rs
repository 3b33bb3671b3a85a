//! `candlewick show`: what a file of scores is, its picture, its strongest rows, and how to make it again.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use candlewick::Error;
use candlewick::plot::{
    HeatmapOptions, PageOptions, SvgOptions, facts, listed, page, shared_reach, strongest, svg,
};
use candlewick::scores::{Column, Conditions, Scores, SortKeys, write_out};
use candlewick::text::{duration, shell_quoted, visible};
use clap::Args;

use super::args::{OutputArgs, PrintArgs};
use super::picture::{PictureArgs, Pictures};
use super::{Context, worded};

/// Rows that are listed where `--top` says nothing.
const ROWS: usize = 20;

/// Show a file of scores: what it is, its picture, its strongest rows, and the command that makes it again.
///
/// `--where` keeps rows by comparisons of a column with a value (= != < <= > >=, `in`, `not in`), joined by `and`, `or`, `not` and
/// brackets; a comma between two comparisons is an `and`. A value is a number, a range `3-5`, or text, in quotes if it has spaces;
/// several with commas between are any of them. A hook goes by its short name too. No comparison holds for a row that has no
/// value in the column. `--sort` and `--columns` list the rows in place of the picture.
///
/// `--svg`, `--png` and `--pdf` draw what the table is of: a grid for each hook, attention patterns, a curve of circuits by their
/// size, bars. `candlewick circuit show` draws a circuit's graph.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick show scores.parquet --top 5
  candlewick show scores.parquet --where component=resid_pre,layer=1-3
  candlewick show scores.parquet --where 'component = resid_pre and layer in 2-3 and not score < 0'
  candlewick show scores.parquet --where 'score > 0.5' --csv --columns layer,head,pos,score
  candlewick show scores.parquet --sort layer,-score --top 20
  candlewick show scores.parquet --panel resid_pre --svg picture.svg
  candlewick show scores.parquet --png picture.png --pdf picture.pdf --width 240 --mark-significant
  candlewick show scores.parquet --svg a.svg --palette orange-purple --scale-to 1
  candlewick show scores.parquet --svg b.svg --scale-to scores.parquet --force")]
pub struct ShowArgs {
    /// A file that `--out` wrote.
    pub file: PathBuf,
    #[command(flatten)]
    pub print: PrintArgs,
    /// Only rows for which all of these hold.
    #[arg(long = "where", value_name = "CONDITIONS")]
    pub conditions: Vec<Conditions>,
    /// Rows by these columns, from the smallest; from the largest with `-` in front, as in `layer,-score`.
    #[arg(long, value_name = "COLUMNS", allow_hyphen_values = true, conflicts_with_all = ["panel", "scale"])]
    pub sort: Option<SortKeys>,
    /// Only these columns, in this order.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', conflicts_with_all = ["panel", "scale"])]
    pub columns: Vec<String>,
    #[command(flatten)]
    pub picture: PictureArgs,
    /// The value of the picture's strongest colour, or the end of its bars' axis: a number, or a file of results, whose picture of the same
    /// rows and panel ends there. The largest of several holds, so that pictures share a scale [default: the picture's own largest].
    #[arg(
        long,
        value_name = "FILE|VALUE",
        requires = "picture",
        help_heading = "Picture"
    )]
    pub scale_to: Vec<ScaleEnd>,
    /// What stands along the axis from left to right [default: what it is].
    #[arg(
        long,
        value_name = "TEXT",
        requires = "picture",
        help_heading = "Picture"
    )]
    pub x_title: Option<String>,
    /// The same along the other axis.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "picture",
        help_heading = "Picture"
    )]
    pub y_title: Option<String>,
    /// A dot in each cell of the drawn picture whose 95% interval excludes 0.
    #[arg(long, requires = "picture", help_heading = "Picture")]
    pub mark_significant: bool,
}

/// Where a scale ends.
#[derive(Debug, Clone)]
pub enum ScaleEnd {
    Value(f64),
    File(PathBuf),
}

impl FromStr for ScaleEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(value) if value > 0.0 && value.is_finite() => Ok(ScaleEnd::Value(value)),
            Ok(_) => Err("a scale ends at a number above 0".into()),
            Err(_) => Ok(ScaleEnd::File(text.into())),
        }
    }
}

pub fn run(args: &ShowArgs, ctx: &Context) -> anyhow::Result<()> {
    let is_of_circuits = |ending: &std::ffi::OsStr| ending == "toml" || ending == "json";
    if args.file.extension().is_some_and(is_of_circuits) && args.file.is_file() {
        return Err(Error::invalid(format!(
            "`{}` is no table of scores; a circuit is shown and drawn by `candlewick circuit show`",
            args.file.display()
        ))
        .into());
    }
    let pictures = args.picture.check()?;
    let whole = Scores::read_parquet(&args.file)?;
    let n_rows = whole.n_rows();
    let scores = chosen(whole, args)?;
    if let Some(pictures) = pictures {
        draw(&scores, args, &pictures)?;
    }
    let mut stdout = BufWriter::new(io::stdout().lock());
    let lists = args.sort.is_some() || !args.columns.is_empty();
    let for_people = !(args.print.csv || args.print.json);
    if !for_people {
        if lists {
            let rows = in_order(&scores, args)?;
            let written = if args.print.csv {
                rows.to_csv(&mut stdout)
            } else {
                rows.to_json(&mut stdout)
            };
            written.context("stdout")?;
        } else {
            print(&scores, &args.print, ctx, &mut stdout)?;
        }
        return stdout.flush().context("stdout");
    }
    // A page is whole or not there at all.
    let mut out = Vec::new();
    for (name, fact) in facts(&scores, n_rows) {
        writeln!(out, "{name:<10}{}", worded(&fact))?;
    }
    writeln!(out)?;
    if lists {
        let rows = in_order(&scores, args)?;
        let width = if ctx.is_terminal {
            ctx.width
        } else {
            usize::MAX
        };
        let n = args.print.top.unwrap_or(ROWS);
        let named = match args.columns.is_empty() {
            true => Vec::new(),
            false => rows
                .table
                .get_column_names()
                .iter()
                .map(|name| name.to_string())
                .collect(),
        };
        write!(out, "{}", listed(&rows, &named, n, width))?;
    } else {
        print(&scores, &args.print, ctx, &mut out)?;
    }
    if !scores.provenance.command.is_empty() {
        writeln!(out)?;
        if !scores.provenance.folder.is_empty() {
            writeln!(out, "made in: {}", visible(&scores.provenance.folder))?;
        }
        writeln!(out, "made by: {}", shell_quoted(&scores.provenance.command))?;
    }
    stdout
        .write_all(&out)
        .and_then(|()| stdout.flush())
        .context("stdout")
}

/// The columns that are asked for, however they were spaced.
fn columns(args: &ShowArgs) -> Vec<String> {
    args.columns
        .iter()
        .map(|name| name.trim().to_string())
        .collect()
}

/// The rows that are asked for.
fn chosen(mut scores: Scores, args: &ShowArgs) -> Result<Scores, Error> {
    for conditions in &args.conditions {
        scores = scores.matching(conditions)?;
    }
    Ok(scores)
}

/// Where the scale of the picture ends, if not at its own largest value.
fn reach(scores: &Scores, args: &ShowArgs) -> Result<Option<f64>, Error> {
    let mut reach = None;
    for end in &args.scale_to {
        let end = match end {
            // What is no end of a scale is refused where it is drawn.
            ScaleEnd::Value(value) => *value,
            ScaleEnd::File(path) => {
                let other = chosen(Scores::read_parquet(path)?, args);
                let found = other
                    .and_then(|other| shared_reach(scores, &other, args.print.panel.as_deref()));
                found.map_err(|error| {
                    Error::invalid(format!("`--scale-to {}`: {error}", path.display()))
                })?
            }
        };
        reach = Some(reach.map_or(end, |most: f64| most.max(end)));
    }
    Ok(reach)
}

/// The pictures that are asked for.
fn draw(scores: &Scores, args: &ShowArgs, pictures: &Pictures) -> anyhow::Result<()> {
    let options = SvgOptions {
        look: pictures.look(),
        scale: args.print.scale,
        reach: reach(scores, args)?,
        panel: args.print.panel.clone(),
        x_title: args.x_title.clone(),
        y_title: args.y_title.clone(),
        mark_significant: args.mark_significant,
    };
    Ok(pictures.write(&svg(scores, &options)?)?)
}

/// All rows in the order asked for, with the columns asked for; with `--csv` or `--json` the first `--top`.
fn in_order(scores: &Scores, args: &ShowArgs) -> anyhow::Result<Scores> {
    let mut rows = scores.with_sides()?;
    if let Some(keys) = &args.sort {
        rows = rows.sorted(keys)?;
    }
    if !args.columns.is_empty() {
        let mut columns = columns(args);
        let metric = Column::Metric.name();
        // Rows of several quantities are told apart by it.
        if !scores.sides.is_empty() && columns.iter().all(|name| name != metric) {
            columns.push(metric.into());
        }
        rows = rows.select(&columns)?;
    }
    if let (Some(n), true) = (args.print.top, args.print.csv || args.print.json) {
        rows.table = rows.table.head(Some(n));
    }
    Ok(rows)
}

/// Writes a table into its file, then prints it.
pub fn finish(
    mut scores: Scores,
    out: &Path,
    output: &OutputArgs,
    ctx: &Context,
) -> anyhow::Result<()> {
    write(&mut scores, out, output, ctx)?;
    tell(&scores, out, output, ctx)
}

/// Writes a table into its file, with the command that makes it again.
pub fn write(
    scores: &mut Scores,
    out: &Path,
    output: &OutputArgs,
    ctx: &Context,
) -> anyhow::Result<()> {
    let folder = std::env::current_dir().unwrap_or_default();
    scores.made_by(&ctx.command, &folder.to_string_lossy());
    Ok(write_out(scores, out, output.force)?)
}

/// Prints a table that is written: warnings, picture, strongest rows, notes, and where all rows are.
pub fn tell(scores: &Scores, out: &Path, output: &OutputArgs, ctx: &Context) -> anyhow::Result<()> {
    for warning in scores.warnings() {
        ctx.warn(warning);
    }
    let mut stdout = BufWriter::new(io::stdout().lock());
    print(scores, &output.print, ctx, &mut stdout)?;
    if !(output.print.csv || output.print.json) {
        writeln!(stdout)?;
        for note in &scores.provenance.notes {
            writeln!(stdout, "{}", worded(&visible(note)))?;
        }
        let (all, measuring) = (ctx.began.elapsed().as_secs_f64(), scores.provenance.seconds);
        writeln!(
            stdout,
            "{} rows from {} examples in {} (loading {}, measuring {}): {}",
            scores.table.height(),
            scores.provenance.examples,
            duration(all),
            duration((all - measuring).max(0.0)),
            duration(measuring),
            visible(&out.display().to_string())
        )?;
    }
    stdout.flush().context("stdout")
}

/// Prints a table as the flags ask: all rows for a pipe, or, for a person, how well the model does the task, the picture and
/// the strongest rows.
pub fn print(
    scores: &Scores,
    args: &PrintArgs,
    ctx: &Context,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if args.csv || args.json {
        let top = args.top.map(|n| strongest(scores, n));
        let whole = scores.with_sides()?;
        let rows = top.as_ref().unwrap_or(&whole);
        if args.csv {
            rows.to_csv(out)
        } else {
            rows.to_json(out)
        }
        .context("stdout")?;
        return Ok(());
    }
    if let Some(report) = &scores.provenance.report {
        for line in report.lines() {
            writeln!(out, "{}", visible(&line))?;
        }
        writeln!(out)?;
    }
    let options = PageOptions {
        heatmap: HeatmapOptions {
            color: ctx.color,
            width: ctx.width,
            scale: args.scale,
            panel: args.panel.clone(),
        },
        list_width: ctx.is_terminal.then_some(ctx.width),
        top: args.top,
    };
    write!(out, "{}", page(scores, &options)?)?;
    Ok(())
}
