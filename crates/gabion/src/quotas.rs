//! Quotas of an open filesystem, in the words of the control protocol.

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::SubvolId;
use gabion_link::errand::QuotaRow;
use gabion_map::format::subvolume::{Count, Most, Quota};
use gabion_node::LocalFs;

use crate::control::wire::{self, QuotaAction, Quotas};
use crate::failure::chain;

/// Does what is asked with the quota of the subvolume at `path` (the first one if not given), or
/// with all, of a filesystem that people call `target`.
pub fn act(
    fs: &LocalFs,
    target: &str,
    path: Option<&str>,
    action: &QuotaAction,
) -> Result<Quotas, String> {
    let rows = match action {
        QuotaAction::List => fs.quotas().map_err(|error| chain(&error))?,
        QuotaAction::Set { bytes, objects } => {
            let of = find(fs, path)?;
            fs.map().set_quota(of, most(*bytes, *objects)).map_err(|error| chain(&error))?;
            let path = path.unwrap_or_default().trim_matches('/');
            let none = Quota { most: Most::default(), count: None };
            let quota = fs.map().quota(of).unwrap_or(none);
            vec![QuotaRow { id: of, path: Some(format!("/{path}").into_bytes()), quota }]
        }
    };
    Ok(told(target, rows))
}

/// Limits, of which that on bytes is counted in blocks.
pub fn most(bytes: Option<u64>, objects: Option<u64>) -> Most {
    Most { blocks: bytes.map(|bytes| bytes / BLOCK_SIZE as u64), objects }
}

/// What is told of the quotas of a filesystem that people call `target`.
pub fn told(target: &str, rows: Vec<QuotaRow>) -> Quotas {
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE as u64);
    let row = |QuotaRow { id, path, quota }: QuotaRow| wire::Quota {
        id: id.0,
        path: path.map(|path| String::from_utf8_lossy(&path).into_owned()),
        limit_bytes: quota.most.blocks.map(bytes),
        used_bytes: quota.count.as_ref().map(Count::charged).map(bytes),
        limit_objects: quota.most.objects,
        used_objects: quota.count.map(|count| count.objects),
    };
    let quotas = rows.into_iter().map(row).collect();
    Quotas { target: target.to_owned(), quotas, collects_writes: false, renewed_after: None }
}

/// The subvolume at this path of the filesystem, which must not be a snapshot.
fn find(fs: &LocalFs, path: Option<&str>) -> Result<SubvolId, String> {
    let path = path.unwrap_or_default();
    match fs.subvolume_of(path.as_bytes()) {
        Ok(of) if fs.map().writable_subvolumes().contains(&of) => Ok(of),
        Ok(_) => Err(format!("/{path} is a snapshot, which never changes")),
        Err(gabion_fs::Error::InvalidArgument) => Err(format!(
            "/{path} is not the root of a subvolume; gabion subvolume create makes one"
        )),
        Err(error) => Err(format!("/{path}: {}", chain(&error))),
    }
}
