// Recordings in a form that the packer does not read: each has its name, and the way to a form that it does read.

import Foundation

/// A form of a recording, or of any other file, that can't be packed as it is.
enum TraceForm: CaseIterable {
  case traceDat, perfData, packedTrace, zstd, bzip2, lz4, zip, utf16, functionGraph, binary

  /// The form that the first bytes of a file show; nil for what may be text.
  init?(_ first: some Collection<UInt8>) {
    let magics: [([UInt8], TraceForm)] = [
      ([0x17, 0x08, 0x44] + Array("tracing".utf8), .traceDat), (Array("PERFILE2".utf8), .perfData),
      (Array("PERFFILE".utf8), .perfData), ([0x89] + Array("STRATA".utf8), .packedTrace),
      ([0x28, 0xb5, 0x2f, 0xfd], .zstd), (Array("BZh".utf8), .bzip2), ([0x04, 0x22, 0x4d, 0x18], .lz4),
      ([0x50, 0x4b, 0x03, 0x04], .zip), ([0xff, 0xfe], .utf16), ([0xfe, 0xff], .utf16),
    ]
    if let (_, form) = magics.first(where: { first.starts(with: $0.0) }) {
      self = form
    } else if first.prefix(4096).contains(0) {
      self = .binary
    } else {
      return nil
    }
  }

  /// ` 24)   0.134 us    |      schedule();`
  static func isFunctionGraph(_ line: Text) -> Bool {
    guard line.first("|") != nil else { return false }
    return line.words(atMost: 4).contains { $0.last == UInt8(ascii: ")") && $0.dropLast().decimal != nil }
  }

  /// The form, and how to get one that can be packed, behind the name of the file.
  func advice(_ file: String) -> String {
    switch self {
    case .traceDat: "is trace-cmd's binary form: pack its text, trace-cmd report -i \(file)"
    case .perfData: "is perf's binary form: pack its text, perf script -i \(file)"
    case .packedTrace: "is a packed trace already: strata replay \(file)"
    case .zstd: "is compressed by zstd: pack what zstd -dc \(file) prints"
    case .bzip2: "is compressed by bzip2: pack what bzip2 -dc \(file) prints"
    case .lz4: "is compressed by lz4: pack what lz4 -dc \(file) prints"
    case .zip: "is a zip archive: unpack it first, unzip \(file)"
    case .utf16: "is text in UTF-16: pack what iconv -f UTF-16 -t UTF-8 \(file) prints"
    case .functionGraph:
      "is a function graph, which doesn't mark interrupts: record with echo nop > current_tracer"
    case .binary: "is no text: pack what trace-cmd report, perf script or cat trace prints"
    }
  }
}
