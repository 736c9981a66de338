// A file, or standard input, line by line; it may be compressed.

import Foundation

/// Where lines come from.
final class TextInput {
  private let input: DecompressedInput

  /// The name as given, with which complaints begin.
  var name: String { input.name }
  /// Bytes of the file on disk; zero when they are not known.
  var size: UInt64 { input.size }
  /// Bytes of the file that have been read.
  var bytesRead: UInt64 { input.bytesRead }

  /// Opens `path`; `-` is standard input.
  init(_ path: String) throws { input = try DecompressedInput(path) }

  /// Bytes that a line may have.
  private static let longestLine = 1 << 20

  /// Runs `body` on each line, without its line feed, and says whether it has one: the last may lack it. Throws for
  /// what is no text.
  func forEachLine(_ body: (LineBytes, _ hasLineFeed: Bool) throws -> Void) throws {
    var rest: [UInt8] = []
    var hasBegun = false
    while case var chunk = try input.next(), !chunk.isEmpty {
      if !hasBegun {
        hasBegun = true
        if let form = TraceForm(chunk) {
          throw Complaint("\(name) \(form.advice(input.fileName))", .dataError)
        }
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
            try pass(rest, to: body, hasLineFeed: true)
            rest.removeAll(keepingCapacity: true)
          }
          left = left[(end + 1)...]
        }
        rest.append(contentsOf: left)
      }
      guard rest.count < Self.longestLine else {
        throw Complaint("\(name): has a line of more than 1 MiB, which no recorder prints", .dataError)
      }
    }
    // The message of a decompressor that failed explains a broken last line better than the line does.
    try input.finish()
    if !rest.isEmpty { try pass(rest, to: body, hasLineFeed: false) }
  }

  private func pass(
    _ line: [UInt8], to body: (LineBytes, _ hasLineFeed: Bool) throws -> Void, hasLineFeed: Bool
  ) throws {
    try line.withUnsafeBufferPointer { try body($0, hasLineFeed) }
  }
}
