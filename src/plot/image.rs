//! A drawn SVG as PNG or PDF. One font is part of the library (DejaVu Sans; its licence lies beside it), and none of the machine's is
//! looked for, so a figure is the same everywhere; a file of a font may be given in its place.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{self, fontdb};

use crate::error::{Error, Result};

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(include_bytes!("font/DejaVuSans.ttf").to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    Arc::new(fonts)
});

/// A font from a file, for pictures in PNG and PDF. What it has no letter for is drawn in the library's own.
#[derive(Debug, Clone)]
pub struct Font {
    family: String,
    fonts: Arc<fontdb::Database>,
}

impl Font {
    /// # Errors
    /// [`Error::Read`]; [`Error::Invalid`] for a file that is no TrueType or OpenType font, or one without letters.
    pub fn read(path: &Path) -> Result<Font> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
        let mut fonts = FONTS.as_ref().clone();
        let known: Vec<fontdb::ID> = fonts.faces().map(|face| face.id).collect();
        fonts.load_font_data(bytes);
        let face = fonts.faces().find(|face| !known.contains(&face.id));
        let family = face.and_then(|face| Some((face.id, face.families.first()?.0.clone())));
        let has_letters = |id| {
            fonts.with_face_data(id, |data, index| {
                let face = ttf_parser::Face::parse(data, index);
                face.is_ok_and(|face| "aM0".chars().all(|c| face.glyph_index(c).is_some()))
            }) == Some(true)
        };
        match family {
            Some((id, family)) if has_letters(id) => Ok(Font {
                family,
                fonts: Arc::new(fonts),
            }),
            _ => Err(Error::invalid(format!(
                "`{}` is no font that letters can be drawn with; give a TrueType or OpenType file (`.ttf`, `.otf`)",
                path.display()
            ))),
        }
    }

    /// What it calls itself.
    pub fn family(&self) -> &str {
        &self.family
    }
}

/// Pixels in an inch of an SVG.
const SVG_DPI: f32 = 96.0;
/// Larger images are refused.
const MOST_PIXELS: f32 = 2.5e8;

fn tree(svg: &str, font: Option<&Font>) -> Result<usvg::Tree> {
    let options = usvg::Options {
        fontdb: Arc::clone(font.map_or(&*FONTS, |font| &font.fonts)),
        font_family: "DejaVu Sans".into(),
        dpi: SVG_DPI,
        ..usvg::Options::default()
    };
    usvg::Tree::from_str(svg, &options)
        .map_err(|error| Error::invalid(format!("the picture cannot be drawn: {error}")))
}

/// A picture of [`super::svg`] as PNG, so many pixels an inch; with a font, one that names its family ([`super::Look`]).
/// # Errors
/// [`Error::Invalid`] for a resolution that is none, and for an image of more than 250 million pixels.
pub fn png(svg: &str, dpi: f32, font: Option<&Font>) -> Result<Vec<u8>> {
    let tree = tree(svg, font)?;
    let scale = dpi / SVG_DPI;
    let (width, height) = (tree.size().width() * scale, tree.size().height() * scale);
    if !(width >= 1.0 && height >= 1.0 && width * height <= MOST_PIXELS) {
        return Err(Error::invalid(format!(
            "a picture of {width:.0} by {height:.0} pixels cannot be made; choose another resolution or width"
        )));
    }
    let mut pixels = Pixmap::new(width.ceil() as u32, height.ceil() as u32)
        .ok_or_else(|| Error::invalid("the picture is too large to be made of pixels"))?;
    // The last column and row may be covered in part.
    pixels.fill(Color::WHITE);
    resvg::render(
        &tree,
        Transform::from_scale(scale, scale),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| Error::invalid(format!("the picture cannot be written as PNG: {error}")))
}

/// A picture of [`super::svg`] as a page of PDF, with text as text; with a font, one that names its family.
/// # Errors
/// [`Error::Invalid`] if it cannot be drawn.
pub fn pdf(svg: &str, font: Option<&Font>) -> Result<Vec<u8>> {
    let page = svg2pdf::PageOptions { dpi: SVG_DPI };
    svg2pdf::to_pdf(
        &tree(svg, font)?,
        svg2pdf::ConversionOptions::default(),
        page,
    )
    .map_err(|error| Error::invalid(format!("the picture cannot be written as PDF: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Look, SvgOptions, svg, test_scores};

    #[test]
    fn a_font_from_a_file_draws_the_letters_and_one_without_letters_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plot/font/DejaVuSans.ttf");
        let same = Font::read(&own).unwrap();
        assert_eq!(same.family(), "DejaVu Sans");
        // The same font under another name, with letters of twice the size.
        let mut bytes = std::fs::read(&own).unwrap();
        let wide = |text: &str| -> Vec<u8> { text.bytes().flat_map(|c| [0, c]).collect() };
        for (from, to) in [
            (b"DejaVu Sans".to_vec(), b"Other Faces".to_vec()),
            (wide("DejaVu Sans"), wide("Other Faces")),
        ] {
            for at in 0..bytes.len() - from.len() {
                if bytes[at..].starts_with(&from) {
                    bytes[at..at + to.len()].copy_from_slice(&to);
                }
            }
        }
        let entry = bytes.windows(4).position(|tag| tag == b"head").unwrap();
        let head = u32::from_be_bytes(bytes[entry + 8..entry + 12].try_into().unwrap()) as usize;
        bytes[head + 18..head + 20].copy_from_slice(&1024u16.to_be_bytes());
        let path = folder.path().join("other.ttf");
        std::fs::write(&path, &bytes).unwrap();
        let other = Font::read(&path).unwrap();
        assert_eq!(other.family(), "Other Faces");
        let scores = test_scores(&["a"], 2);
        let look = |font: Option<&Font>| Look {
            font_family: font.map(|font| font.family().to_string()),
            ..Look::default()
        };
        let drawn = |font: Option<&Font>| {
            let options = SvgOptions {
                look: look(font),
                ..SvgOptions::default()
            };
            let picture = svg(&scores, &options).unwrap();
            if let Some(font) = font {
                let named = format!("'&quot;{}&quot;, sans-serif'", font.family());
                assert!(picture.contains(&named), "{picture}");
            }
            assert!(pdf(&picture, font).unwrap().starts_with(b"%PDF"));
            png(&picture, 96.0, font).unwrap()
        };
        assert_eq!(drawn(None), drawn(Some(&same)));
        assert_ne!(drawn(None), drawn(Some(&other)));
        for bytes in [
            &b""[..],
            b"no font at all",
            &std::fs::read(&own).unwrap()[..900],
        ] {
            let path = folder.path().join("broken.ttf");
            std::fs::write(&path, bytes).unwrap();
            let refused = Font::read(&path).unwrap_err().to_string();
            assert!(refused.contains("is no font"), "{refused}");
        }
        assert!(matches!(
            Font::read(&folder.path().join("nowhere.ttf")),
            Err(Error::Read { .. })
        ));
    }

    #[test]
    fn a_picture_is_drawn_with_its_own_font() {
        let scores = test_scores(&["<a>", "\u{e9}t\u{e9}", "&"], 3);
        let options = |width| SvgOptions {
            look: Look {
                width,
                ..Look::default()
            },
            ..SvgOptions::default()
        };
        let picture = svg(&scores, &options(None)).unwrap();
        let image = png(&picture, 96.0, None).unwrap();
        let size = |png: &[u8]| {
            let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
            (number(16), number(20))
        };
        let (width, height) = size(&image);
        assert!(image.starts_with(b"\x89PNG") && width > 100 && height > 50);
        assert_eq!(
            size(&png(&picture, 192.0, None).unwrap()),
            (2 * width, 2 * height)
        );
        // 360 points are 5 inches.
        let wide = svg(&scores, &options(Some(360.0))).unwrap();
        assert_eq!(size(&png(&wide, 100.0, None).unwrap()).0, 500);
        // Letters are drawn: without them the image is another.
        let without = picture.replace("<text ", "<text display='none' ");
        assert!(png(&without, 96.0, None).unwrap() != image);
        assert!(
            png(&picture, 0.0, None).is_err()
                && png(&picture, 1e9, None).is_err()
                && png(&picture, f32::NAN, None).is_err()
        );
        assert!(pdf(&picture, None).unwrap().starts_with(b"%PDF"));
    }
}
