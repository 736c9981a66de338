// What two threads make of kmem, against one.
//
// Each thread is a processor of one instance, so both use the same caches and the same depot. A pair of an
// allocation and a free stays in the processor's own magazine, and two threads should take no notice of each other.
// From producer to consumer each object changes its processor: full magazines go to the depot on one side and come
// from it on the other, and two caches of the host pass each other the ring's words and the objects' magazines. There
// one thread that does both, over the same ring, is compared with two.
//
// One and two threads run in turns, so that whatever else the host does meets both, and a ratio is the median of the
// turns' own.

import CPlatform
import Foundation
import Kmem
import MemoryPrimitives
import Synchronization

final class ThreadBench {
  private let machine: SimulatedMachine
  private let kmem: Kmem
  private let type: MemoryType
  private static let size = ByteCount(64)
  private static let turns = 15

  init() throws {
    machine = try SimulatedMachine(memory: .mebibytes(64), threads: 1)
    kmem = machine.memory.kmem
    type = kmem.type(named: Name("bench"))
  }

  func rows() throws -> [BenchRow] {
    let pairs = measure("pairs", one: pairs(by: 1), two: pairs(by: 2))
    let passed = measure("producer", one: passing(by: 1), two: passing(by: 2))
    guard kmem.describe(type).inUse == 0 else { throw Complaint("objects were lost", .software) }
    return [
      BenchRow(name: "kmem-pair", figure: pairs.one, unit: "ns, 64 bytes, hot"),
      BenchRow(name: "kmem-pairs-two-threads", figure: pairs.ratio, goal: 1.7, unit: "x one thread"),
      BenchRow(name: "kmem-passed-on", figure: passed.one, unit: "ns, 64 bytes, one thread"),
      BenchRow(name: "kmem-producer-consumer", figure: passed.ratio, unit: "x one thread"),
    ]
  }

  /// Nanoseconds for each object by one thread, and how many times as many objects go through by two.
  private func measure(
    _ what: String, one: () -> Double, two: () -> Double
  ) -> (one: Double, ratio: Double) {
    // Magazines and slabs are made once.
    _ = (one(), two())
    var alone: [Double] = []
    var ratios: [Double] = []
    for turn in 0..<Self.turns {
      Terminal.standard.progress(what, UInt64(turn), of: UInt64(Self.turns))
      let (first, second) = (one(), two())
      alone.append(first)
      ratios.append(first / second)
    }
    return (median(alone), median(ratios))
  }

  private func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }

  // MARK: Pairs

  private func pairs(by threads: Int) -> () -> Double {
    let count = 8_000_000
    let (kmem, type) = (kmem, type)
    return { [machine] in
      let time = machine.time(threads) { _ in
        for _ in 0..<count {
          guard let object = kmem.alloc(Self.size, type: type) else { return }
          kmem.free(object, size: Self.size, type: type)
        }
      }
      return time / Double(count * threads)
    }
  }

  // MARK: Producer and consumer

  private func passing(by threads: Int) -> () -> Double {
    let count = 2_000_000
    let (kmem, type) = (kmem, type)
    return { [machine] in
      let ring = Ring()
      let time = machine.time(threads) { thread in
        var (producer, consumer) = (Ring.End(ring), Ring.End(ring))
        for _ in 0..<count {
          if thread == 0 {
            producer.put(kmem.alloc(Self.size, type: type).unsafelyUnwrapped)
          }
          if thread == threads - 1 {
            kmem.free(consumer.take(), size: Self.size, type: type)
          }
        }
      }
      return time / Double(count)
    }
  }
}

/// A ring of pointers between one who puts and one who takes, without a lock.
private final class Ring: Sendable {
  private static let mask = 255
  nonisolated(unsafe) private let words = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(
    capacity: 256)
  /// Counts of pointers put and taken, each on a cache line of its own.
  nonisolated(unsafe) private let counts = UnsafeMutableRawPointer.allocate(byteCount: 256, alignment: 128)

  init() {
    words.initialize(repeating: nil, count: 256)
    put.initialize(to: Atomic(0))
    taken.initialize(to: Atomic(0))
  }

  deinit {
    words.deallocate()
    counts.deallocate()
  }

  private var put: UnsafeMutablePointer<Atomic<Int>> { counts.assumingMemoryBound(to: Atomic<Int>.self) }
  private var taken: UnsafeMutablePointer<Atomic<Int>> {
    (counts + 128).assumingMemoryBound(to: Atomic<Int>.self)
  }

  /// One side: where it is, and how far the other was when it looked last.
  struct End {
    private let ring: Ring
    private var mine = 0
    private var others = 0

    init(_ ring: Ring) { self.ring = ring }

    mutating func put(_ pointer: UnsafeMutableRawPointer) {
      var spins: UInt32 = 0
      while mine - others > Ring.mask {
        others = ring.taken.pointee.load(ordering: .acquiring)
        if mine - others > Ring.mask { cp_pause(spins) }
        spins &+= 1
      }
      ring.words[mine & Ring.mask] = pointer
      mine += 1
      ring.put.pointee.store(mine, ordering: .releasing)
    }

    mutating func take() -> UnsafeMutableRawPointer {
      var spins: UInt32 = 0
      while others == mine {
        others = ring.put.pointee.load(ordering: .acquiring)
        if others == mine { cp_pause(spins) }
        spins &+= 1
      }
      defer {
        mine += 1
        ring.taken.pointee.store(mine, ordering: .releasing)
      }
      return ring.words[mine & Ring.mask].unsafelyUnwrapped
    }
  }
}

extension SimulatedMachine {
  /// Runs `body` on `threads` processors at once and answers the nanoseconds from the common start until the last is
  /// through.
  func time(_ threads: Int, _ body: @escaping (Int) -> Void) -> Double {
    let spans = UnsafeMutableBufferPointer<(start: UInt64, end: UInt64)>.allocate(capacity: threads)
    defer { spans.deallocate() }
    // Each thread writes a place of its own, and all have ended when they are read.
    nonisolated(unsafe) let (place, body) = (spans, body)
    let arrived = Counter()
    onProcessors(threads) { index in
      // Nobody asks anything of a processor meanwhile: it need not look for it at each interrupt window.
      cp_processor().pointee.pending = nil
      arrived.value.add(1, ordering: .sequentiallyConsistent)
      var spins: UInt32 = 0
      while arrived.value.load(ordering: .acquiring) < threads {
        cp_pause(spins)
        spins &+= 1
      }
      let start = DispatchTime.now().uptimeNanoseconds
      body(index)
      place[index] = (start, DispatchTime.now().uptimeNanoseconds)
    }
    return Double(spans.map(\.end).max()! - spans.map(\.start).min()!)
  }

  private final class Counter: Sendable {
    let value = Atomic<Int>(0)
  }
}
