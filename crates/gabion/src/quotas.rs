//! Quotas of an open filesystem, in the words of the control protocol.

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::SubvolId;
use gabion_map::format::subvolume::{Count, Most};
use gabion_node::LocalFs;

use crate::control::wire::{Quota, QuotaAction, Quotas};
use crate::failure::chain;

/// Does what is asked with the quota of the subvolume at `path` (the first one if not given), or
/// with all, of a filesystem that people call `target`.
pub fn act(
    fs: &LocalFs,
    target: &str,
    path: Option<&str>,
    action: &QuotaAction,
) -> Result<Quotas, String> {
    let quotas = match action {
        QuotaAction::List => list(fs)?,
        QuotaAction::Set { bytes, objects } => {
            let of = find(fs, path)?;
            let blocks = bytes.map(|bytes| bytes / BLOCK_SIZE as u64);
            let most = Most { blocks, objects: *objects };
            fs.map().set_quota(of, most).map_err(|error| chain(&error))?;
            let path = path.unwrap_or_default().trim_matches('/');
            vec![row(fs, of, Some(format!("/{path}")))]
        }
    };
    Ok(Quotas { target: target.to_owned(), quotas })
}

/// The subvolume at this path of the filesystem, which must not be a snapshot.
pub fn find(fs: &LocalFs, path: Option<&str>) -> Result<SubvolId, String> {
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

/// All that have a quota.
fn list(fs: &LocalFs) -> Result<Vec<Quota>, String> {
    let others = fs.subvolumes().map_err(|error| chain(&error))?;
    let text = |path: Vec<u8>| String::from_utf8_lossy(&path).into_owned();
    let others = others.into_iter().map(|(id, path)| (id, path.map(text)));
    let first = (fs.root().subvol, Some("/".to_owned()));
    let all = std::iter::once(first).chain(others);
    let limited = all.filter(|(id, _)| fs.map().quota(*id).is_some());
    Ok(limited.map(|(id, path)| row(fs, id, path)).collect())
}

fn row(fs: &LocalFs, id: SubvolId, path: Option<String>) -> Quota {
    let quota = fs.map().quota(id);
    let most = quota.map_or(Most::default(), |quota| quota.most);
    let count = quota.and_then(|quota| quota.count);
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE as u64);
    Quota {
        id: id.0,
        path,
        limit_bytes: most.blocks.map(bytes),
        used_bytes: count.as_ref().map(Count::charged).map(bytes),
        limit_objects: most.objects,
        used_objects: count.map(|count| count.objects),
    }
}
