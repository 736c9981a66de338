// The owner of allocated frames: a purpose, a type of kmem where there is one, and the call site.
//
// Its two words fit into a frame's record beside role and claims, so each frame that is not free has an owner, and a
// report can name it. The purpose is the address of a constant text, which ends with a zero byte.

/// The owner of frames: why they were allocated, and by which code.
@frozen public struct FrameOwner: Equatable, Sendable {
  /// The address of the purpose's text; 0 for none.
  @usableFromInline package let purposeAddress: UInt64
  /// The number of kmem's type and one in the low half, the call site and the mark in the high half.
  @usableFromInline package let word: UInt64

  /// The bit of `word` that separates an owner from the words of layers that keep their own there. A call site has 30 bits.
  @usableFromInline static var mark: UInt64 { 1 << 63 }

  /// Describes the owner of frames that the code at `site` allocates for `purpose`, a few words.
  @inline(always) public init(_ purpose: StaticString, at site: CallSite = .here) {
    purposeAddress = Self.address(of: purpose)
    word = Self.mark | UInt64(site.rawValue) << 32
  }

  /// Describes an owner whose memory counts under a type of kmem, by the type's number.
  @inline(always) package init(_ purpose: StaticString, type: UInt16, at site: CallSite) {
    purposeAddress = Self.address(of: purpose)
    word = Self.mark | UInt64(site.rawValue) << 32 | UInt64(type) + 1
  }

  /// Makes an owner of the words of a frame's record; nil when they are another layer's.
  package init?(purposeAddress: UInt64, word: UInt64) {
    guard word & Self.mark != 0 else { return nil }
    self.purposeAddress = purposeAddress
    self.word = word
  }

  @inlinable init(purposeAddress: UInt64, unmarked word: UInt64) {
    self.purposeAddress = purposeAddress
    self.word = word
  }

  /// No owner: the words of frames whose layer keeps its own there.
  @inlinable @inline(always) package static var none: Self { Self(purposeAddress: 0, unmarked: 0) }
  /// The owner of a caller that states no purpose: its call site must do.
  @inline(always) public static var here: Self {
    Self(purposeAddress: 0, unmarked: mark | UInt64(CallSite.here.rawValue) << 32)
  }

  /// Whether a purpose was stated.
  package var isStated: Bool { purposeAddress != 0 }

  /// The number of kmem's type, if the memory counts under one.
  package var type: UInt16? {
    let number = UInt32(truncatingIfNeeded: word)
    return number == 0 ? nil : UInt16(truncatingIfNeeded: number - 1)
  }
  /// The call site of the allocation.
  public var site: CallSite { CallSite(codeAddress: word >> 32) }

  @inlinable static func address(of text: StaticString) -> UInt64 {
    UInt64(UInt(bitPattern: text.utf8Start))
  }

  /// The text of the purpose; empty when none was stated.
  package var purpose: Line {
    var text = Line()
    guard var next = UnsafePointer<UInt8>(bitPattern: UInt(purposeAddress)) else { return text }
    while text.count < 80 && next[0] != 0 {
      text.append(byte: next[0])
      next += 1
    }
    return text
  }
  /// The purpose as the requester of a refused request.
  package var requester: ShortName { purpose.withBytes { ShortName(bytes: $0) } }
}
