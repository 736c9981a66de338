// A file, or standard input, line by line; compressed input goes through the system's own gzip or xz.
//
// The first bytes tell the format, not the name. A thread feeds the decompressor, so standard input works
// the same as a file and nothing is read twice.

import Foundation

/// Where lines come from.
final class TextInput {
  /// The name as given, with which complaints begin.
  let name: String
  /// Bytes of the file on disk; zero when they are not known.
  let size: UInt64
  private let source: FileHandle
  private let decompressor: Process?
  private let errors = Pipe()
  private let tally = Tally()

  /// Bytes of the file that have been read.
  var bytesRead: UInt64 { tally.value }

  /// Opens `path`; `-` is standard input.
  init(_ path: String) throws {
    name = path == "-" ? "standard input" : path
    let file: FileHandle
    if path == "-" {
      file = .standardInput
      size = 0
    } else {
      var status = stat()
      guard stat(path, &status) == 0 else { throw Complaint.system(path, .noInput) }
      guard status.st_mode & S_IFMT != S_IFDIR else { throw Complaint("\(path): is a directory", .noInput) }
      let descriptor = open(path, O_RDONLY | O_CLOEXEC)
      guard descriptor >= 0 else { throw Complaint.system(path, .noInput) }
      file = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
      size = UInt64(status.st_size)
    }
    let first: Data
    do { first = try file.read(upToCount: 1 << 16) ?? Data() } catch {
      throw Complaint("\(name): \(error)", .ioError)
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
    pending = Data()
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

  private var pending: Data

  /// Runs `body` on each line, without its line feed.
  func forEachLine(_ body: (UnsafeBufferPointer<UInt8>) throws -> Void) throws {
    var rest: [UInt8] = []
    var chunk = pending
    pending = Data()
    while true {
      if chunk.isEmpty {
        do { chunk = try source.read(upToCount: 1 << 18) ?? Data() } catch {
          throw Complaint("\(name): \(error)", .ioError)
        }
        if chunk.isEmpty { break }
      }
      try chunk.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) in
        var left = bytes.bindMemory(to: UInt8.self)[...]
        while let end = left.firstIndex(of: UInt8(ascii: "\n")) {
          if rest.isEmpty {
            try body(UnsafeBufferPointer(rebasing: left[..<end]))
          } else {
            rest.append(contentsOf: left[..<end])
            try rest.withUnsafeBufferPointer(body)
            rest.removeAll(keepingCapacity: true)
          }
          left = left[(end + 1)...]
        }
        rest.append(contentsOf: left)
      }
      chunk = Data()
    }
    // The message of a decompressor that failed explains a broken last line better than the line does.
    try finish()
    if !rest.isEmpty { try rest.withUnsafeBufferPointer(body) }
  }

  private func finish() throws {
    guard let decompressor else { return }
    decompressor.waitUntilExit()
    guard decompressor.terminationStatus != 0 || decompressor.terminationReason != .exit else { return }
    let said = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    let why = said.split(separator: "\n").first.map(String.init) ?? "it failed"
    throw Complaint("\(name) can't be decompressed: \(why)", .dataError)
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
