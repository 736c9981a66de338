// Requests for contiguous runs, one by one: their results and their costs, each counted from its call to its return.

import ContiguousMemory
import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// The runs that were granted, which are held, and the sums over all requests.
struct RunRequests {
  private let memory: MemorySystem
  private var held: HeldRuns
  private(set) var granted: UInt64 = 0
  /// Pages of the runs that were granted.
  private(set) var gained: UInt64 = 0
  private(set) var cycles: UInt64 = 0
  /// Pages that were moved or written during the requests, neither for a run nor by the page daemon.
  private(set) var outside: UInt64 = 0

  init(_ memory: MemorySystem) {
    self.memory = memory
    held = HeldRuns(memory)
  }

  /// Requests a run and holds it. Returns the failure when it is refused, else nil.
  @discardableResult
  mutating func request(_ size: ByteCount, where constraints: RunConstraints) -> ContiguousFailure? {
    let before = memory.paging.figures
    // Pages of runs, as the passes report them, and those that the daemon wrote elsewhere for the request. The
    // daemon's other writes are its own.
    var (inRuns, fetched): (UInt64, UInt64) = (0, 0)
    let start = cp_cycles()
    do throws(ContiguousFailure) {
      let range = try memory.contiguous.contigmalloc(size, type: held.type, where: constraints) {
        if case .pass(let report) = $0 { inRuns += (report.moved + report.written).rawValue }
        if case .fetched(let outcome) = $0 { fetched += outcome.written.rawValue }
      }
      cycles &+= cp_cycles() &- start
      granted += 1
      gained += range.frames.count.rawValue
      held.hold(range, size)
      count(before, memory.paging.figures, inRuns, fetched)
      return nil
    } catch {
      cycles &+= cp_cycles() &- start
      count(before, memory.paging.figures, inRuns, fetched)
      return error
    }
  }

  /// Frees all runs.
  mutating func release() { held.release() }

  /// `fetched` of the pages that the daemon has written were for the request itself.
  private mutating func count(
    _ before: PagingFigures, _ after: PagingFigures, _ inRuns: UInt64, _ fetched: UInt64
  ) {
    let all = after.moved - before.moved + (after.written - before.written)
    let byDaemon = after.writtenForDaemon - before.writtenForDaemon
    outside += all - min(all, inRuns + (byDaemon - min(byDaemon, fetched)))
  }
}
