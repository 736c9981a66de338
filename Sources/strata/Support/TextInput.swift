// A file, or standard input, line by line; compressed input goes through the system's own gzip or xz.
//
// The first bytes show the format, not the name. A thread feeds the decompressor, so standard input works
// the same as a file and nothing is read twice.

import Foundation

/// Where lines come from.
final class TextInput {
  /// The name as given, with which complaints begin.
  let name: String
  /// Bytes of the file on disk; zero when they are not known.
  let size: UInt64
  /// The name in a command that is proposed.
  private let fileName: String
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

  /// Bytes that a line may have.
  private static let longestLine = 1 << 20
  private var pending: Data

  /// Runs `body` on each line, without its line feed, and says whether it has one: the last may lack it. Throws for
  /// what is no text.
  func forEachLine(_ body: (LineBytes, _ hasLineFeed: Bool) throws -> Void) throws {
    var rest: [UInt8] = []
    var hasBegun = false
    var chunk = pending
    pending = Data()
    while true {
      if chunk.isEmpty {
        do { chunk = try source.read(upToCount: 1 << 18) ?? Data() } catch {
          throw Complaint.reading(name, error)
        }
        if chunk.isEmpty { break }
      }
      if !hasBegun {
        hasBegun = true
        if let form = TraceForm(chunk) { throw Complaint("\(name) \(form.advice(fileName))", .dataError) }
        // The mark of UTF-8 is no part of the first line.
        if chunk.starts(with: [0xef, 0xbb, 0xbf]) { chunk = Data(chunk.dropFirst(3)) }
      }
      try chunk.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) in
        var left = bytes.bindMemory(to: UInt8.self)[...]
        while let end = left.firstIndex(of: UInt8(ascii: "\n")) {
          if rest.isEmpty {
            try body(LineBytes(rebasing: left[..<end]), true)
          } else {
            rest.append(contentsOf: left[..<end])
            try rest.withUnsafeBufferPointer { try body($0, true) }
            rest.removeAll(keepingCapacity: true)
          }
          left = left[(end + 1)...]
        }
        rest.append(contentsOf: left)
      }
      guard rest.count < Self.longestLine else {
        throw Complaint("\(name): has a line of more than 1 MiB, which no recorder prints", .dataError)
      }
      chunk = Data()
    }
    // The message of a decompressor that failed explains a broken last line better than the line does.
    try finish()
    if !rest.isEmpty { try rest.withUnsafeBufferPointer { try body($0, false) } }
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
