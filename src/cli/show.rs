//! `candlewick show`: what a file of scores is, its picture, its strongest rows, and how to make it again.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use candlewick::Error;
use candlewick::plot::{
    HeatmapOptions, PageOptions, SvgOptions, facts, listed, page, pdf, png, strongest, svg,
};
use candlewick::scores::{Conditions, Scores, SortKeys, write_out, write_whole};
use candlewick::text::{duration, shell_quoted, visible};
use clap::{ArgGroup, Args};

use super::Context;
use super::args::{OutputArgs, PrintArgs};

/// Rows that are listed where `--top` says nothing.
const ROWS: usize = 20;

/// Show a file of scores: what it is, its picture, its strongest rows, and the command that makes it again.
///
/// `--where` keeps rows by comparisons of a column with a value (= != < <= > >=, `in`, `not in`), joined by `and`, `or`, `not` and
/// brackets; a comma between two comparisons is an `and`. A value is a number, a range `3-5`, or text, in quotes if it has spaces;
/// several with commas between are any of them. A hook goes by its short name too. No comparison holds for a row that has no
/// value in the column. `--sort` and `--columns` list the rows in place of the picture.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("picture").multiple(true)))]
#[command(after_help = "\
Examples:
  candlewick show scores.parquet --top 5
  candlewick show scores.parquet --where component=resid_pre,layer=1-3
  candlewick show scores.parquet --where 'component = resid_pre and layer in 2-3 and not score < 0'
  candlewick show scores.parquet --where 'score > 0.5' --csv --columns layer,head,pos,score
  candlewick show scores.parquet --sort layer,-score --top 20
  candlewick show scores.parquet --panel resid_pre --svg picture.svg
  candlewick show scores.parquet --png picture.png --pdf picture.pdf --width 240 --mark-significant")]
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
    /// Also draw the picture into this file.
    #[arg(long, value_name = "FILE", group = "picture")]
    pub svg: Option<PathBuf>,
    /// The same as an image of pixels.
    #[arg(long, value_name = "FILE", group = "picture")]
    pub png: Option<PathBuf>,
    /// The same as a page of its own size, for a paper.
    #[arg(long, value_name = "FILE", group = "picture")]
    pub pdf: Option<PathBuf>,
    /// Width of the drawn picture in points, 72 an inch [default: what its labels need].
    #[arg(long, value_name = "POINTS", requires = "picture")]
    pub width: Option<f64>,
    /// Pixels an inch of `--png`.
    #[arg(long, value_name = "N", default_value_t = 200.0, requires = "png")]
    pub dpi: f32,
    /// A dot in each cell of the drawn picture whose 95% interval excludes 0.
    #[arg(long, requires = "picture")]
    pub mark_significant: bool,
}

pub fn run(args: &ShowArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut scores = Scores::read_parquet(&args.file)?;
    let n_rows = scores.table.height();
    for conditions in &args.conditions {
        scores = scores.matching(conditions)?;
    }
    draw(&scores, args)?;
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
        writeln!(out, "{name:<10}{fact}")?;
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
        write!(out, "{}", listed(&rows, &columns(args), n, width))?;
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

/// The pictures that are asked for.
fn draw(scores: &Scores, args: &ShowArgs) -> anyhow::Result<()> {
    if args.svg.is_none() && args.png.is_none() && args.pdf.is_none() {
        return Ok(());
    }
    for (path, ending) in [(&args.svg, "svg"), (&args.png, "png"), (&args.pdf, "pdf")] {
        let Some(path) = path else { continue };
        // A picture never takes the place of results.
        if path
            .extension()
            .is_none_or(|other| !other.eq_ignore_ascii_case(ending))
        {
            return Err(Error::invalid(format!(
                "`{}` is to be a picture: end its name in `.{ending}`",
                path.display()
            ))
            .into());
        }
    }
    let options = SvgOptions {
        scale: args.print.scale,
        panel: args.print.panel.clone(),
        mark_significant: args.mark_significant,
        width: args.width,
    };
    let picture = svg(scores, &options)?;
    let write = |path: &PathBuf, bytes: &[u8]| {
        write_whole(path, |file| {
            file.write_all(bytes).map_err(|source| Error::Write {
                path: path.clone(),
                source,
            })
        })
    };
    if let Some(path) = &args.svg {
        write(path, picture.as_bytes())?;
    }
    if let Some(path) = &args.png {
        write(path, &png(&picture, args.dpi)?)?;
    }
    if let Some(path) = &args.pdf {
        write(path, &pdf(&picture)?)?;
    }
    Ok(())
}

/// All rows in the order asked for, with the columns asked for; with `--csv` or `--json` the first `--top`.
fn in_order(scores: &Scores, args: &ShowArgs) -> anyhow::Result<Scores> {
    let mut rows = scores.with_sides()?;
    if let Some(keys) = &args.sort {
        rows = rows.sorted(keys)?;
    }
    if !args.columns.is_empty() {
        rows = rows.select(&columns(args))?;
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
            writeln!(stdout, "{}", visible(note))?;
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
            out.display()
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
