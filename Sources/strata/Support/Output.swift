// Writing a file whole or not at all.

import Foundation

/// Whether both names lead to one regular file.
func isSameFile(_ one: String, _ other: String) -> Bool {
  var (first, second) = (stat(), stat())
  return stat(one, &first) == 0 && stat(other, &second) == 0 && first.st_mode & S_IFMT == S_IFREG
    && first.st_dev == second.st_dev && first.st_ino == second.st_ino
}

/// Writes `bytes` to `path`; `-` is standard output. A file appears under its name only when it is complete; what is
/// no regular file, such as /dev/stdout, is written to directly.
func write(_ bytes: [UInt8], to path: String) throws {
  if path == "-" {
    return try write(bytes, to: STDOUT_FILENO, "standard output")
  }
  var status = stat()
  let isSpecial = stat(path, &status) == 0 && status.st_mode & S_IFMT != S_IFREG
  if isSpecial && status.st_mode & S_IFMT == S_IFDIR {
    throw Complaint("\(path): is a directory", .cannotCreate)
  }
  let (descriptor, target) = isSpecial ? (open(path, O_WRONLY | O_TRUNC | O_CLOEXEC), path) : openBeside(path)
  guard descriptor >= 0 else { throw Complaint.system(path, .cannotCreate) }
  var complaint = writeAll(bytes, to: descriptor, path)
  // A disk over a network may report only here that it is full.
  if close(descriptor) != 0 && complaint == nil { complaint = .system(path, .ioError) }
  if complaint == nil && !isSpecial && rename(target, path) != 0 { complaint = .system(path, .cannotCreate) }
  guard let complaint else { return }
  if !isSpecial { unlink(target) }
  throw complaint
}

/// Opens a new file in the folder of `path`, under a name that no other file has. Unlike mkstemp, it leaves the mode to
/// the umask, which can't be read without setting it.
private func openBeside(_ path: String) -> (descriptor: Int32, name: String) {
  let folder = path.lastIndex(of: "/").map { path[...$0] } ?? ""
  while true {
    let name = "\(folder).strata-\(String(UInt64.random(in: 0 ... .max), radix: 36))"
    let descriptor = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
    if descriptor >= 0 || errno != EEXIST { return (descriptor, name) }
  }
}

/// Writes `bytes` to a descriptor; `name` is for the complaint.
func write(_ bytes: [UInt8], to descriptor: Int32, _ name: String) throws {
  if let complaint = writeAll(bytes, to: descriptor, name) { throw complaint }
}

/// Writes `bytes`, and answers the complaint if they can't be written.
private func writeAll(_ bytes: [UInt8], to descriptor: Int32, _ name: String) -> Complaint? {
  var rest = bytes[...]
  while !rest.isEmpty {
    let count = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
    if count < 0 && errno == EINTR { continue }
    guard count > 0 else { return .system(name, .ioError) }
    rest = rest.dropFirst(count)
  }
  return nil
}
