// The bytes of a file, or of standard input; compressed input goes through the system's own gzip or xz.
//
// The first bytes show the format, not the name. A thread feeds the decompressor, so standard input works
// the same as a file and nothing is read twice.

import Foundation

/// Where bytes come from.
final class DecompressedInput {
  /// The name as given, with which complaints begin.
  let name: String
  /// Bytes of the file on disk; zero when they are not known.
  let size: UInt64
  /// The name in a command that is proposed.
  let fileName: String
  private let source: FileHandle
  private let decompressor: Process?
  private let errors = Pipe()
  private let tally = Tally()

  /// Bytes of the file that have been read.
  var bytesRead: UInt64 { tally.value }

  /// Opens `path`; `-` is standard input.
  init(_ path: String) throws {
    let file: FileHandle
    (file, name) = try openInput(path)
    var status = stat()
    size = path != "-" && stat(path, &status) == 0 ? UInt64(max(0, status.st_size)) : 0
    fileName = path == "-" ? "FILE" : path
    let first: Data
    do { first = try file.read(upToCount: 1 << 16) ?? Data() } catch {
      throw Complaint.reading(name, error)
    }
    tally.add(first.count)
    guard let tool = Self.tool(for: first) else {
      decompressor = nil
      pending = first
      source = file
      return
    }
    guard let path = Self.find(tool) else {
      throw Complaint(
        "\(name) is compressed, and \(tool) is not installed: apt-get install \(tool)", .unavailable)
    }
    signal(SIGPIPE, SIG_IGN)
    let (input, output) = (Pipe(), Pipe())
    let process = Process()
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = ["-dc"]
    process.standardInput = input
    process.standardOutput = output
    process.standardError = errors
    do { try process.run() } catch { throw Complaint("\(path): \(error)", .unavailable) }
    decompressor = process
    source = output.fileHandleForReading
    pending = nil
    let (writer, tally) = (input.fileHandleForWriting, tally)
    Thread.detachNewThread {
      var chunk = first
      while !chunk.isEmpty {
        // The write fails when the decompressor has ended, which prints the reason.
        guard (try? writer.write(contentsOf: chunk)) != nil else { break }
        chunk = (try? file.read(upToCount: 1 << 16)) ?? Data()
        tally.add(chunk.count)
      }
      try? writer.close()
    }
  }

  /// The first bytes of input that is not compressed; nil once `next` has answered them.
  private var pending: Data?

  /// The next bytes; none at the end.
  func next() throws -> Data {
    if let first = pending {
      pending = nil
      return first
    }
    do { return try source.read(upToCount: 1 << 18) ?? Data() } catch { throw Complaint.reading(name, error) }
  }

  /// Throws the message of a decompressor that failed.
  func finish() throws {
    guard let decompressor else { return }
    decompressor.waitUntilExit()
    guard decompressor.terminationStatus != 0 || decompressor.terminationReason != .exit else { return }
    let said = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    let why = said.split(separator: "\n").first.map(String.init) ?? "it failed"
    throw Complaint("\(name) can't be decompressed: \(why)", .dataError)
  }

  /// All bytes of `path`. Throws a complaint where there are none, or more than `limit`.
  static func contents(of path: String, limit: Int) throws -> Data {
    let input = try DecompressedInput(path)
    var contents = Data()
    while case let chunk = try input.next(), !chunk.isEmpty {
      guard contents.count + chunk.count <= limit else {
        throw Complaint("\(input.name): has more than \(grouped(limit)) bytes", .dataError)
      }
      contents.append(chunk)
      Terminal.standard.progress("read", input.bytesRead, of: input.size)
    }
    try input.finish()
    guard !contents.isEmpty else { throw Complaint("\(input.name): is empty", .dataError) }
    return contents
  }

  private static func tool(for first: Data) -> String? {
    if first.starts(with: [0x1f, 0x8b]) { return "gzip" }
    if first.starts(with: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]) { return "xz" }
    return nil
  }

  private static func find(_ tool: String) -> String? {
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    return path.split(separator: ":").map { "\($0)/\(tool)" }.first { access($0, X_OK) == 0 }
  }
}

/// A count that one thread adds to and another reads.
private final class Tally: @unchecked Sendable {
  private let lock = NSLock()
  private var count: UInt64 = 0
  var value: UInt64 { lock.withLock { count } }
  func add(_ amount: Int) { lock.withLock { count += UInt64(amount) } }
}
