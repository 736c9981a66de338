// The tunables and counts of contiguous memory, and its rows in the registry.

import MemoryPrimitives
import Synchronization

extension ContiguousAllocator {
  /// The strategy of contigmalloc.
  public var strategy: ContiguousStrategy {
    ContiguousStrategy(rawValue: UInt8(state.pointee.strategy.load(ordering: .relaxed))) ?? .new
  }
  /// The last pass that contigmalloc may reach.
  public var passes: ContiguousPass {
    ContiguousPass(rawValue: UInt8(state.pointee.passes.load(ordering: .relaxed))) ?? .launderActive
  }
  /// Selects the strategy of contigmalloc.
  public func setStrategy(_ strategy: ContiguousStrategy) {
    state.pointee.strategy.store(UInt64(strategy.rawValue), ordering: .relaxed)
  }
  /// Sets the last pass that contigmalloc may reach.
  public func setPasses(_ passes: ContiguousPass) {
    state.pointee.passes.store(UInt64(passes.rawValue), ordering: .relaxed)
  }

  /// Pages moved by this allocator since the start.
  public var movedCount: PageCount { PageCount(counters.moved.load(ordering: .relaxed)) }
  /// Pages written by this allocator since the start.
  public var writtenCount: PageCount { PageCount(counters.written.load(ordering: .relaxed)) }

  init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  /// Adds the rows of this layer.
  package func register(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(state)
    statistics.add(
      Statistic(
        "vm.contig.strategy", .choice, .tunable, "new empties one run, old launders whole queues",
        choices: "old|new",
        context: context, read: { UInt64(ContiguousAllocator($0).strategy.rawValue) },
        write: {
          if let strategy = ContiguousStrategy(rawValue: UInt8(clamping: $1)) {
            ContiguousAllocator($0).setStrategy(strategy)
          }
        }))
    statistics.add(
      Statistic(
        "vm.contig.passes", .passes, .tunable, "how far contigmalloc may go",
        range: UInt64(ContiguousPass.free.rawValue)...UInt64(ContiguousPass.launderActive.rawValue),
        context: context, read: { UInt64(ContiguousAllocator($0).passes.rawValue) },
        write: {
          if let passes = ContiguousPass(rawValue: UInt8(clamping: $1)) {
            ContiguousAllocator($0).setPasses(passes)
          }
        }))
    func counter(
      _ name: StaticString, _ unit: StatisticUnit, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, .counter, about, context: context, read: read))
    }
    counter("vm.contig.requests", .requests, "requests for contiguous memory") {
      ContiguousAllocator($0).counters.requests.load(ordering: .relaxed)
    }
    counter("vm.contig.granted", .requests, "granted since boot") {
      ContiguousAllocator($0).counters.granted.load(ordering: .relaxed)
    }
    counter("vm.contig.refused", .requests, "refused since boot; failures lists the last") {
      ContiguousAllocator($0).counters.refused.load(ordering: .relaxed)
    }
    counter("vm.contig.repeated", .requests, "refused in constant time, as they failed before") {
      ContiguousAllocator($0).counters.repeated.load(ordering: .relaxed)
    }
    counter("vm.contig.pages_moved", .pages, "pages moved out of the way of runs") {
      ContiguousAllocator($0).movedCount.rawValue
    }
    counter("vm.contig.pages_written", .pages, "pages written to swap or devices, for runs") {
      ContiguousAllocator($0).writtenCount.rawValue
    }
    counter(
      "vm.contig.runs_abandoned", .events, "runs isolated, and freed again because they could not be emptied"
    ) {
      ContiguousAllocator($0).counters.runsAbandoned.load(ordering: .relaxed)
    }
    counter("vm.searches", .events, "searches for runs to be emptied") {
      ContiguousAllocator($0).counters.searches.load(ordering: .relaxed)
    }
    counter("vm.search_steps", .steps, "steps of searches for runs to be emptied") {
      ContiguousAllocator($0).counters.searchSteps.load(ordering: .relaxed)
    }
    counter("vm.failed_cache.hits", .requests, "requests refused by the failed-request cache") {
      ContiguousAllocator($0).counters.failedCacheHits.load(ordering: .relaxed)
    }
    counter("vm.failed_cache.steps", .steps, "steps of lookups in the failed-request cache") {
      ContiguousAllocator($0).counters.failedCacheSteps.load(ordering: .relaxed)
    }
  }
}
