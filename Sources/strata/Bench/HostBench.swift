// All rows of the budgets that a host process can measure.

import CPlatform
import Foundation
import HostMachine
import Kmem
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Vmem
import Workloads
import Zsmalloc

final class HostBench {
  private let trace: String
  private let pages: String
  private let only: String
  private let verbose: Bool
  private var found: [Budget: Double] = [:]
  /// Rows that could not be measured, and why.
  private(set) var leftOut: [(name: String, why: String)] = []

  /// Rows whose names begin with `only`; objects come from the trace at this path, pages from a file. `verbose`
  /// prints the time of each allocator.
  init(trace: String, pages: String, only: String, verbose: Bool) {
    self.trace = trace
    self.pages = pages
    self.only = only
    self.verbose = verbose
  }

  /// Whether a row of the host has a name that begins with `prefix`.
  static func hasRow(_ prefix: String) -> Bool {
    Budget.all.contains { $0.row.place == .host && "\($0.row.name)".hasPrefix(prefix) }
  }

  private func isWanted(_ budget: Budget) -> Bool { "\(budget.row.name)".hasPrefix(only) }

  /// The host's rows that are wanted, in the order of the table.
  func figures() throws -> [BenchFigure] {
    try compareObjects()
    try threads()
    try churn()
    try searches()
    try compressedPages()
    try straddlingReads()
    try compareCodecs()
    found[.frameRecord] = Double(FrameRecordPointer.size)
    found[.boundaryTag] = Double(Tags.tagSize.rawValue)
    return Budget.all.filter { $0.row.place == .host && isWanted($0) }.map { BenchFigure($0, found[$0]) }
  }

  // MARK: Objects, against the four

  private func compareObjects() throws {
    let workloads = ObjectWorkload.allCases.filter {
      isWanted($0.budget) || ($0 == .pair64 && isWanted(.kmemPairTime))
        || ($0 == .trace && isWanted(.kmemTraceHeld))
    }
    guard !workloads.isEmpty else { return }
    // A trace that is missing is a mistake also where there is nothing to compare with.
    if workloads.contains(.trace) { _ = try contents(of: trace, limit: 1 << 30) }
    let rivals: [Rival]
    do {
      rivals = try Rival.four()
    } catch let complaint as Complaint {
      return leftOut.append(("kmem-", "\(complaint)"))
    }
    for (done, workload) in workloads.enumerated() {
      Terminal.standard.progress("objects", UInt64(done), of: UInt64(workloads.count), workload.rawValue)
      try compare(workload, rivals)
    }
  }

  private func compare(_ workload: ObjectWorkload, _ rivals: [Rival]) throws {
    let figures = try AllocatorComparison(workload, on: rivals, trace: trace).figures
    found[workload.budget] = figures[0].time / figures.dropFirst().map(\.time).min()!
    if workload == .pair64 { found[.kmemPairTime] = figures[0].time }
    if workload == .trace { found[.kmemTraceHeld] = figures[0].held }
    guard verbose else { return }
    Terminal.standard.clearProgress()
    for figure in figures {
      let bytes = workload == .trace ? String(format: ", %.3f bytes held for each live", figure.held) : ""
      let text = String(format: "%.2f ns", figure.time) + bytes
      printToStandardError("\(workload.budget.row.name)".left(26) + figure.name.left(10) + text + "\n")
    }
  }

  // MARK: Two threads against one

  private func threads() throws {
    guard isWanted(.kmemTwoThreads) || isWanted(.pageTwoThreads) else { return }
    let machine = try HostSystem(toolMemory: .mebibytes(256), threads: 1)
    let kmem = machine.memory.kmem
    let allocator = KmemBenchAllocator(kmem, kmem.type(named: ShortName("bench")))
    found[.kmemTwoThreads] = twoAgainstOne("pairs of objects", 8_000_000) {
      ObjectBench.pairs(allocator, 64, $0)
    }
    let pages = PageBench(machine.memory)
    found[.pageTwoThreads] = twoAgainstOne("pairs of pages", 400_000) { pages.pairs(BlockOrder(0), $0) }
    withExtendedLifetime(machine) {}
  }

  /// The throughput of two threads over that of one: the median over turns, each of one thread and two.
  private func twoAgainstOne(_ what: String, _ count: Int, _ body: @escaping (Int) -> Void) -> Double {
    let turns = 11
    var ratios: [Double] = []
    for turn in 0...turns {
      Terminal.standard.progress(what, UInt64(turn), of: UInt64(turns))
      let one = BenchThreads.time(1) { _ in body(count) }
      let two = BenchThreads.time(2) { _ in body(count) }
      // The first turn allocates the state that stays.
      if turn > 0 { ratios.append(2 * one / two) }
    }
    return ratios.sorted()[turns / 2]
  }

  // MARK: Frames

  private func churn() throws {
    let rows: [(Budget, UInt64)] = [(.churn50, 50), (.churn80, 80), (.churn90, 90)]
    for (budget, percent) in rows where isWanted(budget) {
      Terminal.standard.progress("churn", percent, of: 100)
      let machine = try HostSystem(toolMemory: .gibibytes(1))
      let pages = UnsafeMutableBufferPointer<FrameNumber>.allocate(capacity: 1 << 18)
      defer { pages.deallocate() }
      var churn = ChurnBench(machine.memory.physical, pages, seed: 1)
      found[budget] = Double(churn.run(percent: percent, rounds: 400)) / 1000
      withExtendedLifetime(machine) {}
    }
  }

  private func searches() throws {
    let rows: [(Budget, RunSearchPattern)] = [
      (.searchTaken, .everySecond), (.searchRandom, .random), (.searchLast, .lastBlock),
    ]
    for (done, (budget, pattern)) in rows.enumerated() where isWanted(budget) {
      Terminal.standard.progress("searches", UInt64(done), of: 3)
      let (small, large) = (try steps(pattern, .gibibytes(1)), try steps(pattern, .gibibytes(64)))
      found[budget] = Double(large) / Double(max(1, small))
    }
    guard isWanted(.searchLuck) else { return }
    found[.searchLuck] = Double(try steps(.luck, .mebibytes(64))) / 32
  }

  // MARK: The compressed store

  private func compressedPages() throws {
    guard isWanted(.zsDensity) || isWanted(.zsDensityHalf) else { return }
    let file = try PackedFile(try DecompressedInput.contents(of: pages, limit: PackedFile.limit))
    try file.pack()
    file.compact()
    found[.zsDensity] = try file.step("compacted").density
    file.freeHalf(seed: 1)
    file.compact()
    found[.zsDensityHalf] = try file.step("half freed, compacted").density
    try file.finish()
  }

  private func compareCodecs() throws {
    guard isWanted(.zsCodecSize) || isWanted(.zsCompressTime) || isWanted(.zsDecompressTime) else { return }
    let data = try DecompressedInput.contents(of: pages, limit: PackedFile.limit)
    let comparison: CodecComparison
    do { comparison = try CodecComparison(data) } catch let complaint as Complaint {
      return leftOut.append(("zs-lz4-", "\(complaint)"))
    }
    let figures = try comparison.figures()
    found[.zsCodecSize] = figures.size
    found[.zsCompressTime] = figures.compressTime
    found[.zsDecompressTime] = figures.decompressTime
  }

  private func straddlingReads() throws {
    let rows: [(StraddlingAccess, refused: Budget, addresses: Budget)] = [
      (.parts, .zsPartsRefused, .zsPartsAddresses), (.window, .zsWindowRefused, .zsWindowAddresses),
      (.map, .zsMapRefused, .zsMapAddresses), (.vmap, .zsVmapRefused, .zsVmapAddresses),
      (.copy, .zsCopyRefused, .zsCopyAddresses),
    ]
    for row in rows where isWanted(row.refused) || isWanted(row.addresses) {
      let machine = try HostSystem(toolMemory: .mebibytes(64))
      guard let bench = ZsBench(machine.memory) else { throw Complaint("no memory for a bench", .software) }
      defer { bench.release() }
      let failures = machine.host.failures
      let refused = bench.reads(by: row.0, 1000, prepare: { failures.pointee.failsAll = true }) {
        failures.pointee.failsAll = false
      }
      guard let refused, let plain = bench.reads(by: row.0, 1000) else {
        throw Complaint("no object straddles two pages", .software)
      }
      found[row.refused] = Double(refused.refused)
      found[row.addresses] = Double(plain.addresses)
      withExtendedLifetime(machine) {}
    }
  }

  private func steps(_ pattern: RunSearchPattern, _ size: ByteCount) throws -> UInt64 {
    let machine = try HostSystem(toolMemory: size)
    let storage = ZeroedStorage(byteCount: Int(RunSearchBench.storage(size).rawValue))
    let result = RunSearchBench(machine.memory, size, storage.base).run(pattern, seed: 1)
    guard result.isRight else { throw Complaint("a search for a run gave a wrong answer", .software) }
    withExtendedLifetime((machine, storage)) {}
    return result.steps
  }
}
