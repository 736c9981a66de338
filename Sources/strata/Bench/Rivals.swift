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

  /// The names of the allocators that kmem can be compared with.
  static let names = libraries.map(\.0) + ["glibc"]

  /// The four allocators. Throws for one that is not installed.
  static func four() throws -> [Rival] { try names.map { try Rival($0) } }

  /// Names from a list with commas. Throws a complaint for a list that has another name, or none.
  static func named(_ list: String) throws -> [String] {
    let given = list.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }
    let unknown = given.first { !names.contains($0) }
    guard unknown == nil, !given.isEmpty, Set(given).count == given.count else {
      let why = unknown.map { "no \"\($0)\"" } ?? (given.isEmpty ? "none is named" : "one is named twice")
      throw Complaint("--against takes \(names.joined(separator: ",")): \(why)", .usage)
    }
    return given
  }

  /// The allocator of this name. Throws when it is not installed.
  init(_ name: String) throws {
    var path: String?
    if let (_, file) = Self.libraries.first(where: { $0.0 == name }) {
      let paths = Self.folders.map { "\($0)/\(file)" }
      path = paths.first { FileManager.default.fileExists(atPath: $0) }
      guard path != nil else {
        throw Complaint("\(file) is not installed: Scripts/install-tools bench", .unavailable)
      }
    }
    self.init(name: name, library: path, isStrata: false)
  }

  private init(name: String, library: String?, isStrata: Bool) {
    self.name = name
    self.library = library
    self.isStrata = isStrata
  }
}

/// A process that measures one pattern on one allocator.
final class Worker {
  private let rival: Rival
  private let process = Process()
  private let input = Pipe()
  private let output = Pipe()
  private let errors = Pipe()
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
    process.standardError = errors
    do { try process.run() } catch { throw Complaint("the tool can't start itself: \(error)", .unavailable) }
    // Else the end of the process would not be the end of what it prints.
    try? errors.fileHandleForWriting.close()
    try? output.fileHandleForWriting.close()
    guard try line() == "ready" else { throw failure }
  }

  /// The reason that the process printed before it ended.
  private var failure: Complaint {
    try? input.fileHandleForWriting.close()
    let said = (try? errors.fileHandleForReading.readToEnd()) ?? Data()
    let line = String(decoding: said, as: UTF8.self).split(separator: "\n").last.map(String.init)
    let why = line.map { $0.hasPrefix("strata: ") ? String($0.dropFirst(8)) : $0 } ?? "ended too early"
    process.waitUntilExit()
    let status =
      process.terminationReason == .exit ? Complaint.Status(rawValue: process.terminationStatus) : nil
    return Complaint("the bench of \(rival.name): \(why)", status ?? .software)
  }

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
