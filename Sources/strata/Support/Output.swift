// Writing a file whole or not at all.

import Foundation

/// Whether both names lead to one regular file.
func isSameFile(_ one: String, _ other: String) -> Bool {
  var (first, second) = (stat(), stat())
  return stat(one, &first) == 0 && stat(other, &second) == 0 && first.st_mode & S_IFMT == S_IFREG
    && first.st_dev == second.st_dev && first.st_ino == second.st_ino
}

/// Writes `bytes` to `path`. A file appears under its name only when it is complete; what is no regular
/// file, such as /dev/stdout, is written to directly.
func write(_ bytes: [UInt8], to path: String) throws {
  var status = stat()
  let isSpecial = stat(path, &status) == 0 && status.st_mode & S_IFMT != S_IFREG
  let target = isSpecial ? path : path + ".part"
  let descriptor = open(target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o666)
  guard descriptor >= 0 else { throw Complaint.system(path, .cannotCreate) }
  var done = 0
  while done < bytes.count {
    let count = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress! + done, bytes.count - done) }
    if count < 0 && errno == EINTR { continue }
    guard count > 0 else {
      let complaint = Complaint.system(path, .ioError)
      close(descriptor)
      if !isSpecial { unlink(target) }
      throw complaint
    }
    done += count
  }
  close(descriptor)
  if !isSpecial && rename(target, path) != 0 {
    let complaint = Complaint.system(path, .cannotCreate)
    unlink(target)
    throw complaint
  }
}
