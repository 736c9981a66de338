// The rows of this layer in the statistics registry.

import MemoryPrimitives
import Synchronization

private typealias Reader = @convention(c) (UnsafeMutableRawPointer?) -> UInt64

extension FrameAllocator {
  /// Adds this layer's rows.
  package func register(in statistics: Statistics) {
    registerFrames(in: statistics)
    registerReserves(in: statistics)
    registerRequests(in: statistics)
  }

  private func registerFrames(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(state)
    statistics.add(
      Statistic("vm.frames.total", .pages, .gauge, "frames of the memory map", context: context) {
        Self($0).total.rawValue
      })
    for value in 0..<FrameRole.count {
      let role = FrameRole(rawValue: UInt8(value)).unsafelyUnwrapped
      if role == .absent { continue }
      statistics.add(
        Statistic(
          role.statisticName, .pages, .gauge, "frames with this role",
          context: UnsafeMutableRawPointer(table.counts + Int(role.rawValue)),
          read: { $0!.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed) }))
    }
    statistics.add(
      Statistic("vm.frames.cached", .pages, .gauge, "free frames that are cached pages", context: context) {
        Self($0).cachedCount.rawValue
      })
  }

  private func registerReserves(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(state)
    let range = 0...largestReserve.rawValue
    statistics.add(
      Statistic(
        "vm.reserve.normal", .pages, .tunable, "frames that normal requests leave free", range: range,
        context: context, read: { Self($0).reserve(for: .normal).rawValue },
        write: { try? Self($0).setReserve(PageCount($1), for: .normal) }))
    statistics.add(
      Statistic(
        "vm.reserve.system", .pages, .tunable, "frames that system requests leave free", range: range,
        context: context, read: { Self($0).reserve(for: .system).rawValue },
        write: { try? Self($0).setReserve(PageCount($1), for: .system) }))
  }

  private func registerRequests(in statistics: Statistics) {
    func counter(
      _ name: StaticString, _ unit: StatisticUnit, _ about: StaticString, _ read: @escaping Reader
    ) {
      statistics.add(
        Statistic(name, unit, .counter, about, context: UnsafeMutableRawPointer(state), read: read))
    }
    counter("vm.allocations", .requests, "blocks and single frames granted") {
      Self($0).counted.allocations.value
    }
    counter("vm.frees", .events, "frees of frames of one pageblock and role") {
      Self($0).counted.frees.value
    }
    counter("vm.failures", .requests, "blocks and single frames refused; failures lists the last") {
      Self($0).counted.failures.value
    }
    counter("vm.runs", .requests, "runs granted") { Self($0).counted.runs.value }
    counter("vm.failed_attempts", .events, "attempts that found no memory, layers above and waiters included")
    {
      Self($0).counted.failedAttempts.value
    }
    counter("vm.run_failures", .requests, "runs refused; failures lists the last") {
      Self($0).counted.runFailures.value
    }
    counter("vm.run_steps", .steps, "steps of searches for runs") { Self($0).counted.runSteps.value }
    counter("vm.waits", .requests, "requests that waited for memory") { Self($0).counted.waits.value }
    counter("vm.reactivations", .pages, "cached pages reactivated") {
      Self($0).counted.reactivations.value
    }
    counter("vm.isolations", .events, "runs isolated to be emptied") {
      Self($0).counted.isolations.value
    }
    counter("vm.isolated", .pages, "frames captured in isolated runs") {
      Self($0).counted.captures.value
    }
  }
}
