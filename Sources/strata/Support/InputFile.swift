// Reading a file, or standard input, whole. A device that never ends, such as /dev/zero, is refused, not read for ever.

import Foundation

/// The bytes of the file at `path`, `limit` at most; `-` is standard input. Throws a complaint with the reason.
func contents(of path: String, limit: Int) throws -> Data {
  let (file, name) = try openInput(path)
  let data: Data
  do { data = try file.read(upToCount: limit + 1) ?? Data() } catch { throw Complaint.reading(name, error) }
  guard data.count <= limit else {
    throw Complaint("\(name): has more than \(grouped(limit)) bytes", .dataError)
  }
  return data
}

/// The bytes of the packed trace at `path`; of another file, only its beginning, which says that it is none.
func packedTrace(at path: String) throws -> Data {
  let (file, name) = try openInput(path)
  do {
    guard let beginning = try file.read(upToCount: 4096) else { return Data() }
    guard beginning.starts(with: [0x89] + Array("STRATA".utf8)) else { return beginning }
    return try beginning + (file.readToEnd() ?? Data())
  } catch { throw Complaint.reading(name, error) }
}

/// Opens the file at `path`; `-` is standard input. Answers the name for complaints too.
func openInput(_ path: String) throws -> (file: FileHandle, name: String) {
  guard path != "-" else { return (.standardInput, "standard input") }
  guard !path.isEmpty else { throw Complaint("the name of a file is empty", .usage) }
  let descriptor = open(path, O_RDONLY | O_CLOEXEC)
  guard descriptor >= 0 else { throw Complaint.system(path, .noInput) }
  let file = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
  var status = stat()
  guard fstat(descriptor, &status) == 0 else { throw Complaint.system(path, .noInput) }
  guard status.st_mode & S_IFMT != S_IFDIR else { throw Complaint("\(path): is a directory", .noInput) }
  return (file, path)
}

extension Complaint {
  /// A read that failed, with the system's reason.
  static func reading(_ name: String, _ error: any Error) -> Complaint {
    let cause = (error as NSError).userInfo[NSUnderlyingErrorKey] as? NSError ?? error as NSError
    let reason =
      cause.domain == NSPOSIXErrorDomain
      ? String(cString: strerror(Int32(cause.code))) : cause.localizedDescription
    return Complaint("\(name): \(reason)", .ioError)
  }
}
