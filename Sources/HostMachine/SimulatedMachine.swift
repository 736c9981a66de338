// A machine inside an ordinary process: simulated RAM, processors, interrupts and a fault reporter,
// behind the same platform interface as the executive on bare metal.
//
// RAM is one anonymous mapping without reservation, so 64 GiB cost nothing until touched; its base is the base of the
// direct map. A processor is a thread that has an index. A pending interrupt runs on the thread that switches
// interrupts on again, so re-entry is tested without threads, in seeded order.

import CPlatform
import Foundation
import MemoryPrimitives
import Synchronization

/// One simulated machine. Several live side by side.
public final class SimulatedMachine: @unchecked Sendable {
  /// Bytes of RAM.
  public let memorySize: ByteCount
  /// Processors that it has.
  public let processorCount: Int
  private let ram: UnsafeMutableRawPointer
  private let upcalls = UnsafeMutablePointer<cp_upcalls>.allocate(capacity: 1)
  let condition = NSCondition()
  let processors: [HostProcessor]
  let threads = HostThreads()
  private var collected: [FaultReport] = []
  var ticks: UInt64 = 0
  /// The longest sleep first.
  var sleepers: [HostSleeper] = []
  private var expectsFaults = false

  /// Creates a machine with `memory` bytes of RAM from physical address 0 on, which reads as zero.
  public init(memory: ByteCount, processors: Int = 1) {
    memorySize = memory
    processorCount = processors
    self.processors = (0..<processors).map { HostProcessor(index: $0) }
    // Aligned to a gibibyte, so that the direct map needs the same page tables at each base.
    let huge = 1 << 30
    let length = Int(memory.rawValue) + huge
    let mapping = mmap(
      nil, length, PROT_READ | PROT_WRITE, Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE), -1, 0)
    guard let mapping, mapping != MAP_FAILED else { fatalError("no address space for simulated RAM") }
    reservation = UnsafeMutableRawBufferPointer(start: mapping, count: length)
    ram = UnsafeMutableRawPointer(bitPattern: (UInt(bitPattern: mapping) + UInt(huge - 1)) & ~UInt(huge - 1))!
    upcalls.initialize(
      to: cp_upcalls(
        context: nil,
        report_fault: { SimulatedMachine.from($0).receive($1.load(as: FaultReport.self)) },
        read_tick: { SimulatedMachine.from($0).currentTick() },
        shoot_down: { SimulatedMachine.from($0).shootDown(UnsafeBufferPointer(start: $1, count: Int($2))) },
        run_on: { SimulatedMachine.from($0).run(on: ProcessorIndex($1), $2, $3) },
        sleep: { context, sequence, seen, deadline, kind, _ in
          SimulatedMachine.from(context).sleep(sequence, seen: seen, until: deadline, kind)
        },
        wake: { context, _ in SimulatedMachine.from(context).wakeAll() },
        start: { SimulatedMachine.from($0).start($1.pointee) }, join: { SimulatedMachine.from($0).join($1) },
        confine: nil))
    failures.initialize(to: FailureInjection())
    upcalls.pointee.context = Unmanaged.passUnretained(self).toOpaque()
  }

  private let reservation: UnsafeMutableRawBufferPointer

  deinit {
    munmap(reservation.baseAddress!, reservation.count)
    upcalls.deallocate()
    failures.deallocate()
  }

  private static func from(_ context: UnsafeMutableRawPointer?) -> SimulatedMachine {
    Unmanaged<SimulatedMachine>.fromOpaque(context!).takeUnretainedValue()
  }

  /// The machine as an instance sees it. The instance must not outlive this object.
  public var machine: Machine {
    Machine(
      directMap: DirectMap(base: UInt64(UInt(bitPattern: ram))), processorCount: processorCount,
      upcalls: UnsafePointer(upcalls), failures: failures)
  }

  /// Counts the allocation points that this machine's instances pass, and makes one of them fail.
  public let failures = UnsafeMutablePointer<FailureInjection>.allocate(capacity: 1)

  // MARK: Faults

  /// Runs `body` and returns its fault reports. Outside of this a report is printed, and ends the process.
  public func faults(in body: () throws -> Void) rethrows -> [FaultReport] {
    condition.withLock { expectsFaults = true }
    defer {
      condition.withLock {
        expectsFaults = false
        collected = []
      }
    }
    try body()
    return condition.withLock { collected }
  }

  private func receive(_ report: FaultReport) {
    let expected = condition.withLock {
      collected.append(report)
      return expectsFaults
    }
    guard !expected else { return }
    FileHandle.standardError.write(Data(HostFaultReport.text(report).utf8))
    fatalError("a caller's bug: \(report.kind)")
  }

  // MARK: Time and waiting

  private func currentTick() -> UInt64 { condition.withLock { ticks } }

  /// Lets time pass.
  public func advance(ticks count: UInt64 = 1) {
    condition.withLock {
      ticks += count
      condition.broadcast()
    }
  }

  /// Runs the devices of a machine without threads while a thread sleeps. Returns false when all devices are idle. Nil
  /// means that other threads wake sleepers.
  public var runDevices: (@Sendable () -> Bool)?
  /// Called with the pages of each TLB shootdown, as `cp_upcalls` describes them: invalidates a translation buffer in
  /// software.
  public var invalidate: (@Sendable (_ address: UInt64, _ pages: UInt64) -> Void)?
  /// Called on each thread that is started for the core, before it becomes the processor of this index. A test attaches
  /// a translation buffer there.
  public var atStart: (@Sendable (Int) -> Void)?
  /// Whether other threads may wake a sleeper. If not, a sleep without devices ends at once, and the core gets no
  /// threads.
  public var hasOtherThreads = false
  /// Whether only threads that are processors of this machine wake sleepers, so that it is stuck when all of them
  /// sleep. Set before they run.
  public var isClosed = false
  /// On a closed machine, the sleeps that were refused because no processor can end them. Read it when no thread runs.
  public internal(set) var refusals = 0
  /// On a closed machine, how often all sleepers were woken because none could be refused. Read it when no thread runs.
  public internal(set) var rescues = 0

  private func sleep(
    _ sequence: UnsafePointer<UInt64>, seen: UInt64, until deadline: UInt64, _ kind: WaitKind
  ) -> cp_wake {
    func changed() -> Bool {
      sequence.withMemoryRebound(to: Atomic<UInt64>.self, capacity: 1) {
        $0.pointee.load(ordering: .acquiring) != seen
      }
    }
    while true {
      if changed() { return .woken }
      if currentTick() >= deadline { return .deadline }
      if let runDevices {
        if !runDevices() { return changed() ? .woken : .never }
        continue
      }
      return hasOtherThreads ? sleepAmongThreads(kind, until: deadline, changed) : .never
    }
  }

  func wakeAll() { condition.withLock { condition.broadcast() } }
}
