// A process that measures one pattern on one allocator, a turn for each line that it is sent.
//
// The host's allocators replace malloc of the whole process, so each needs a process of its own; Strata gets one as
// well, so that all begin alike. Memory of the bench itself is mapped and not allocated, so that no allocator holds
// it.

import ArgumentParser
import CPlatform
import Foundation
import HostMachine
import Kmem
import KernelMemory
import MemoryPrimitives
import Workloads

/// The malloc of this process.
private struct MallocAllocator: BenchAllocator {
  @inline(__always) func allocate(_ size: UInt64) -> UnsafeMutableRawPointer {
    malloc(Int(size)).unsafelyUnwrapped
  }
  @inline(__always) func free(_ object: UnsafeMutableRawPointer, _ size: UInt64) { Foundation.free(object) }
}

struct BenchWorker: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "bench-worker", shouldDisplay: false)

  @Argument var workload: ObjectWorkload
  @Flag(help: "Through Strata's kmem instead of malloc.") var strata = false
  @Option(help: "The library that is preloaded.") var expect: String?
  @Option var trace = ""

  func run() throws {
    try complaining {
      if let expect {
        let maps = FileHandle(forReadingAtPath: "/proc/self/maps")?.readDataToEndOfFile() ?? Data()
        guard String(decoding: maps, as: UTF8.self).contains(expect) else {
          throw Complaint("\(expect) was not loaded", .unavailable)
        }
      }
      if strata {
        let machine = try HostSystem(toolMemory: .gibibytes(1), threads: 1)
        let (kmem, physical) = (machine.memory.kmem, machine.memory.physical)
        let free = physical.freeCount
        let own = KmemAllocator.size(processors: 2).rawValue
        let allocator = KmemBenchAllocator(kmem, kmem.type(named: ShortName("bench")))
        try serve(allocator) { own + (free - physical.freeCount).bytes.rawValue }
        withExtendedLifetime(machine) {}
      } else {
        let before = Self.residentBytes()
        try serve(MallocAllocator()) { Self.residentBytes() - min(before, Self.residentBytes()) }
      }
    }
  }

  /// Bytes of this process that are in memory.
  private static func residentBytes() -> UInt64 {
    let file = open("/proc/self/statm", O_RDONLY)
    defer { close(file) }
    return withUnsafeTemporaryAllocation(byteCount: 256, alignment: 1) { buffer in
      let count = max(0, read(file, buffer.baseAddress!, 255))
      // The second number: resident pages.
      var field = 0
      var pages: UInt64 = 0
      for byte in buffer[0..<count] {
        if byte == 0x20 { field += 1 } else if field == 1 { pages = pages * 10 + UInt64(byte & 15) }
      }
      return pages * Page.size
    }
  }

  /// Maps memory that no allocator knows, zeroed and touched.
  private static func map<T>(_ count: Int, of type: T.Type) throws -> UnsafeMutableBufferPointer<T> {
    let bytes = max(1, count * MemoryLayout<T>.stride)
    let memory = mmap(
      nil, bytes, PROT_READ | PROT_WRITE, Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE), -1, 0)
    guard let memory, memory != MAP_FAILED else {
      throw Complaint("no memory for its tables, \(grouped(bytes)) bytes", .unavailable)
    }
    return UnsafeMutableBufferPointer(start: memory.bindMemory(to: type, capacity: count), count: count)
  }

  /// The bytes of a file, for as long as the process lives.
  private static func mapFile(_ path: String) throws -> UnsafeRawBufferPointer {
    let file = open(path, O_RDONLY)
    guard file >= 0 else { throw Complaint.system(path, .noInput) }
    defer { close(file) }
    let length = Int(lseek(file, 0, SEEK_END))
    guard length > 0, let memory = mmap(nil, length, PROT_READ, Int32(MAP_PRIVATE), file, 0),
      memory != MAP_FAILED
    else { throw Complaint("\(path) can't be read", .noInput) }
    return UnsafeRawBufferPointer(start: memory, count: length)
  }

  /// The result of a turn.
  private struct Turn {
    /// Nanoseconds for each pair or event.
    var time: Double
    /// Bytes held for each byte live at the peak.
    var held: Double?
  }

  /// Makes the pattern ready, then measures a turn for each line on standard input.
  private func serve<A: BenchAllocator>(_ allocator: A, _ held: @escaping () -> UInt64) throws {
    let turn = try turn(allocator, held)
    print("ready")
    fflush(nil)
    while readLine() != nil {
      let result = turn()
      print(result.time, result.held ?? 0)
      fflush(nil)
    }
  }

  /// Nanoseconds of processor time of this thread; other programs on the host do not count.
  private static var processorTime: UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  private func turn<A: BenchAllocator>(_ a: A, _ held: @escaping () -> UInt64) throws -> () -> Turn {
    let count = 1_000_000
    func timed(_ count: Int, _ body: @escaping () -> Void) -> () -> Turn {
      return {
        let start = Self.processorTime
        body()
        return Turn(time: Double(Self.processorTime - start) / Double(count))
      }
    }
    switch workload {
    // The compiler knows a size that is a literal in the source.
    case .pair16: return timed(count) { ObjectBench.pairs(a, 16, count) }
    case .pair64: return timed(count) { ObjectBench.pairs(a, 64, count) }
    case .pair128: return timed(count) { ObjectBench.pairs(a, 128, count) }
    case .pair1024: return timed(count) { ObjectBench.pairs(a, 1024, count) }
    case .pair4096: return timed(count) { ObjectBench.pairs(a, 4096, count) }
    case .variable16: return timed(count) { ObjectBench.variablePairs(a, 16, count) }
    case .variable64: return timed(count) { ObjectBench.variablePairs(a, 64, count) }
    case .variable128: return timed(count) { ObjectBench.variablePairs(a, 128, count) }
    case .variable1024: return timed(count) { ObjectBench.variablePairs(a, 1024, count) }
    case .variable4096: return timed(count) { ObjectBench.variablePairs(a, 4096, count) }
    case .batches:
      let objects = try Self.map(64, of: UnsafeMutableRawPointer?.self).baseAddress!
      return timed(count) { ObjectBench.batches(a, objects, count / 64) }
    case .randomOne: return try replacements(a, live: 1000, .one, timed)
    case .randomSmall: return try replacements(a, live: 1000, .small, timed)
    case .randomMixed: return try replacements(a, live: 1000, .mixed, timed)
    case .randomMany: return try replacements(a, live: 100_000, .mixed, timed)
    case .trace: return try traceTurn(a, held)
    case .passedOn: return passing(a)
    }
  }

  private func replacements<A: BenchAllocator>(
    _ a: A, live: Int, _ sizes: ObjectSizes, _ timed: (Int, @escaping () -> Void) -> () -> Turn
  ) throws -> () -> Turn {
    let slots = try Self.map(live, of: ObjectSlot.self)
    let steps = try Self.map(live > 1000 ? 1 << 19 : 1 << 16, of: ObjectReplacement.self)
    ObjectBench.fill(a, slots, steps, sizes, seed: 1)
    let rounds = (1 << 19) / steps.count
    return timed(steps.count * rounds) { ObjectBench.replace(a, slots, steps, rounds: rounds) }
  }

  private func traceTurn<A: BenchAllocator>(_ a: A, _ held: @escaping () -> UInt64) throws -> () -> Turn {
    let bytes = try Self.mapFile(trace)
    let unpacked: TraceObjects
    do {
      let packed = try PackedTrace(bytes)
      unpacked = try TraceObjects(
        packed, into: Self.map(TraceObjects.capacity(packed.counts), of: TraceObjectEvent.self),
        sizes: Self.map(Int(packed.counts.objects), of: UInt32.self))
    } catch let error as TraceError {
      throw Complaint(trace + error.describe("").text, .dataError)
    }
    guard unpacked.peakBytes > 0 else {
      throw Complaint("\(trace) has no object of at most 4 KiB", .dataError)
    }
    let objects = try Self.map(unpacked.identities * 64, of: UnsafeMutableRawPointer?.self).baseAddress!
    // For Strata everything counts, its own state included; a process has more in memory than malloc holds.
    let base = strata ? 0 : held()
    return {
      let start = Self.processorTime
      unpacked.run(a, objects, from: 0, to: unpacked.peakIndex)
      let atPeak = held()
      unpacked.run(a, objects, from: unpacked.peakIndex, to: unpacked.count)
      let time = Self.processorTime - start
      return Turn(
        time: Double(time) / Double(unpacked.count * 64),
        held: Double(atPeak - min(base, atPeak)) / Double(unpacked.peakBytes * 64))
    }
  }

  private func passing<A: BenchAllocator>(_ a: A) -> () -> Turn {
    let count = 1_000_000
    return {
      let ring = Ring()
      let time = BenchThreads.time(2) { thread in
        var end = Ring.End(ring)
        for _ in 0..<count {
          if thread == 0 { end.put(cp_opaque(a.allocate(64))) } else { a.free(end.pop(), 64) }
        }
        if thread == 0 { end.publish() }
      }
      return Turn(time: time / Double(count))
    }
  }
}
