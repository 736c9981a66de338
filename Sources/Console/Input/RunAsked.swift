// A run of frames as a person asks for it: SIZE and where it may lie. `why` and `contig` take the same words.

import ContiguousMemory
import MemoryPrimitives
import PhysicalMemory

/// The requested run.
struct RunAsked {
  var size: ByteCount
  var constraints = RunConstraints()
  var waitPolicy = WaitPolicy.allowed

  init(_ size: ByteCount) { self.size = size }

  var count: PageCount { size.pagesRoundedUp }

  /// The words to type for it.
  var line: Line {
    var line = Self.spelled(size)
    let limits = constraints
    if limits.low.rawValue > 0 { line.append(line: " low=\(Self.spelled(ByteCount(limits.low.rawValue)))") }
    if limits.high.rawValue < .max {
      line.append(line: " high=\(Self.spelled(ByteCount(limits.high.rawValue)))")
    }
    if limits.alignment > .page {
      line.append(line: " align=\(Self.spelled(ByteCount(limits.alignment.rawValue)))")
    }
    if let boundary = limits.boundary {
      line.append(line: " boundary=\(Self.spelled(ByteCount(boundary.rawValue)))")
    }
    if !waitPolicy.mayWait { line.append(" nowait") }
    return line
  }

  /// A size as one types it: `512M`.
  static func spelled(_ size: ByteCount) -> Line {
    let bytes = size.rawValue
    if bytes & (1 << 30 - 1) == 0 { return "\(bytes >> 30)G" }
    if bytes & (1 << 20 - 1) == 0 { return "\(bytes >> 20)M" }
    if bytes & (1 << 10 - 1) == 0 { return "\(bytes >> 10)K" }
    return "\(bytes)"
  }

  /// The reason why this machine can never grant it.
  func whyNever(_ physical: FrameAllocator) -> Line {
    let (low, high) = (constraints.low.rawValue, constraints.high.rawValue)
    if let boundary = constraints.boundary, boundary.rawValue < count.bytes.rawValue {
      return
        "a run of \(count.bytes) crosses a multiple of \(ByteCount(boundary.rawValue)) wherever it lies"
    } else if low >= high || high - low < count.bytes.rawValue {
      return "from low to high there is less than \(count.bytes)"
    } else if count > physical.total {
      return "all memory of this machine is \(physical.total.bytes)"
    }
    return "no range of memory satisfies that, whatever is freed"
  }
}

extension Arguments {
  /// SIZE, and `low=`, `high=`, `align=`, `boundary=` wherever they stand. `word` is the size.
  func run(_ word: Word) throws(CommandError) -> RunAsked {
    var asked = RunAsked(try size(word))
    guard asked.size > .zero else { throw console.refuse(word, "a run of no bytes is always granted") }
    if let low = value(of: "low") { asked.constraints.low = PhysicalAddress(try place(low)) }
    if let word = value(of: "high") {
      let high = try place(word)
      let low = asked.constraints.low.rawValue
      guard high > low else {
        throw console.refuse(
          word, low == 0 ? "nothing lies below that" : high == low ? "low is as high" : "low is above high")
      }
      asked.constraints.high = PhysicalAddress(high)
    }
    if let word = value(of: "align") { asked.constraints.alignment = try power(word, "an alignment") }
    if let word = value(of: "boundary") { asked.constraints.boundary = try power(word, "a boundary") }
    return asked
  }

  /// An address as `0x…`, or a size, which is an address too.
  private func place(_ word: Word) throws(CommandError) -> UInt64 {
    if word.bytes.count > 1 && Figures.lower(word.bytes[1]) == UInt8(ascii: "x") { return try address(word) }
    return try size(word).rawValue
  }

  private func power(_ word: Word, _ what: StaticString) throws(CommandError) -> Alignment {
    let size = try size(word).rawValue
    if let alignment = Alignment(size) { return alignment }
    guard size > 0, size < 1 << 62 else { throw console.refuse(word, "\(what) is a power of two") }
    let below = ByteCount(UInt64(1) << UInt64(63 - size.leadingZeroBitCount))
    throw console.refuse(
      word, "\(what) is a power of two: try \(RunAsked.spelled(below)) or \(RunAsked.spelled(below + below))")
  }
}
