// The allocators that kmem is compared with, and the processes in which all of them take turns.

import Foundation

/// An allocator of the comparison.
struct Rival {
  let name: String
  /// The library to preload; none for kmem and for glibc, which is present already.
  let library: String?
  let isStrata: Bool

  static let strata = Rival(name: "strata", library: nil, isStrata: true)

  private static let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"]
  private static let libraries = [
    ("mimalloc", "libmimalloc.so.2"), ("jemalloc", "libjemalloc.so.2"),
    ("tcmalloc", "libtcmalloc_minimal.so.4"),
  ]

  /// The four allocators. Throws for one that is not installed.
  static func four() throws -> [Rival] {
    try libraries.map { name, file in
      let paths = folders.map { "\($0)/\(file)" }
      guard let path = paths.first(where: { FileManager.default.fileExists(atPath: $0) }) else {
        throw Complaint("\(file) is not installed: Scripts/install-tools bench", .unavailable)
      }
      return Rival(name: name, library: path, isStrata: false)
    } + [Rival(name: "glibc", library: nil, isStrata: false)]
  }
}

/// A process that measures one pattern on one allocator.
final class Worker {
  private let rival: Rival
  private let process = Process()
  private let input = Pipe()
  private let output = Pipe()
  private var unread = Data()

  init(_ rival: Rival, _ workload: ObjectWorkload, trace: String) throws {
    self.rival = rival
    process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    process.arguments = ["bench-worker", workload.rawValue, "--trace", trace]
    if rival.isStrata { process.arguments?.append("--strata") }
    var environment = ProcessInfo.processInfo.environment
    environment["LD_PRELOAD"] = rival.library
    if let library = rival.library {
      // The name of the file behind the link goes on with more of the version.
      let file = URL(fileURLWithPath: library).lastPathComponent
      process.arguments? += ["--expect", file.prefix(upTo: file.range(of: ".so")!.upperBound).description]
    }
    process.environment = environment
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    guard try line() == "ready" else { throw failure }
  }

  private var failure: Complaint { Complaint("the bench of \(rival.name) ended too early", .software) }

  /// One turn: nanoseconds for each pair or event, and bytes held for each byte live where that is known.
  func turn() throws -> (time: Double, held: Double) {
    try input.fileHandleForWriting.write(contentsOf: Data("turn\n".utf8))
    let words = try line().split(separator: " ").compactMap { Double($0) }
    guard words.count == 2 else { throw failure }
    return (words[0], words[1])
  }

  func end() throws {
    try input.fileHandleForWriting.close()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw failure }
  }

  private func line() throws -> String {
    while true {
      if let end = unread.firstIndex(of: 0x0a) {
        defer { unread = Data(unread[(end + 1)...]) }
        return String(decoding: unread[..<end], as: UTF8.self)
      }
      let more = output.fileHandleForReading.availableData
      guard !more.isEmpty else { throw failure }
      unread += more
    }
  }
}
