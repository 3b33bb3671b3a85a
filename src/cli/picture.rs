//! Pictures into files: the flags of every command that draws.

use std::io::Write as _;
use std::path::PathBuf;

use candlewick::Error;
use candlewick::plot::{Font, Look, Palette, pdf, png};
use candlewick::scores::write_whole;
use clap::{ArgGroup, Args};

use super::destination::check_new;

/// Where pictures go, and how they look.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Picture", group(ArgGroup::new("picture").multiple(true)))]
pub struct PictureArgs {
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
    /// Its colours; colour-blind readers can tell each apart.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "red-blue",
        requires = "picture"
    )]
    pub palette: Palette,
    /// What stands over it.
    #[arg(long, value_name = "TEXT", requires = "picture")]
    pub title: Option<String>,
    /// A TrueType or OpenType file that its letters are drawn with; an SVG names the font and does not hold it [default: the one that is
    /// part of the program].
    #[arg(long, value_name = "FILE", requires = "picture")]
    pub font: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long, requires = "picture")]
    pub force: bool,
}

/// Pictures that were asked for, with all that can be wrong about it found.
pub struct Pictures<'a> {
    args: &'a PictureArgs,
    font: Option<Font>,
}

impl PictureArgs {
    fn is_wanted(&self) -> bool {
        self.svg.is_some() || self.png.is_some() || self.pdf.is_some()
    }

    /// Refuses a name that is no picture's, a file that is there, and a font that is none; `None` where no picture is asked for.
    /// # Errors
    /// [`Error::Invalid`] naming the file; those of [`check_new`].
    pub fn check(&self) -> Result<Option<Pictures<'_>>, Error> {
        if !self.is_wanted() {
            return Ok(None);
        }
        for (path, ending) in [(&self.svg, "svg"), (&self.png, "png"), (&self.pdf, "pdf")] {
            let Some(path) = path else { continue };
            if path
                .extension()
                .is_none_or(|other| !other.eq_ignore_ascii_case(ending))
            {
                return Err(Error::invalid(format!(
                    "`{}` is to be a picture: end its name in `.{ending}`",
                    path.display()
                )));
            }
            check_new(path, self.force)?;
        }
        let font = self.font.as_deref().map(Font::read).transpose()?;
        Ok(Some(Pictures { args: self, font }))
    }
}

impl Pictures<'_> {
    pub fn look(&self) -> Look {
        Look {
            palette: self.args.palette,
            title: self.args.title.clone(),
            width: self.args.width,
            font_family: self.font.as_ref().map(|font| font.family().to_string()),
        }
    }

    /// Writes a drawn SVG into every file that was asked for.
    /// # Errors
    /// Those of drawing and of writing.
    pub fn write(&self, picture: &str) -> Result<(), Error> {
        let write = |path: &PathBuf, bytes: &[u8]| {
            write_whole(path, |file| {
                file.write_all(bytes).map_err(|source| Error::Write {
                    path: path.clone(),
                    source,
                })
            })
        };
        // All are made before the first is written.
        let mut pictures = Vec::new();
        let PictureArgs {
            svg,
            png: pixels,
            pdf: page,
            dpi,
            ..
        } = self.args;
        let font = self.font.as_ref();
        if let Some(path) = svg {
            pictures.push((path, picture.as_bytes().to_vec()));
        }
        if let Some(path) = pixels {
            pictures.push((path, png(picture, *dpi, font)?));
        }
        if let Some(path) = page {
            pictures.push((path, pdf(picture, font)?));
        }
        pictures
            .iter()
            .try_for_each(|(path, bytes)| write(path, bytes))
    }
}
